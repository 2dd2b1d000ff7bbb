"""The difference between the processes that are and those that should be."""

import pytest

from elasticdl.core.pods import Changes, changes, delay_s, natural, number_of


def test_nothing_changes_where_all_is_as_it_should_be():
    assert changes({"worker-0", "worker-4"}, 2, 5) == Changes()


def test_missing_workers_are_started_under_new_names():
    assert changes(set(), 2, 0) == Changes(start=("worker-0", "worker-1"))
    assert changes({"worker-1"}, 3, 2) == Changes(start=("worker-2", "worker-3"))


def test_the_youngest_are_stopped_first():
    observed = {"worker-10", "worker-9", "worker-2"}
    assert changes(observed, 1, 11) == Changes(stop=("worker-9", "worker-10"))
    assert changes(observed, 0, 11) == Changes(stop=("worker-2", "worker-9", "worker-10"))


def test_who_is_needed_is_not_stopped_even_if_there_are_too_many():
    observed = {"worker-0", "worker-1", "worker-2"}
    assert changes(observed, 1, 3, {"worker-1", "worker-2"}) == Changes(stop=("worker-0",))
    assert changes(observed, 1, 3, observed) == Changes()


@pytest.mark.parametrize(
    ("early_losses", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (9, 30), (5000, 30)]
)
def test_the_next_start_waits_longer_the_more_have_died_early(early_losses, seconds):
    assert delay_s(early_losses) == seconds


def test_names_stand_in_the_order_of_their_numbers():
    names = ["worker-10", "worker-9", "worker-2"]
    assert sorted(names, key=natural) == ["worker-2", "worker-9", "worker-10"]
    assert [number_of(name) for name in (*names, "worker-x", "")] == [10, 9, 2, -1, -1]
