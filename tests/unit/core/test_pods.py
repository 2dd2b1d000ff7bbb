"""The difference between the processes that are and those that should be."""

from elasticdl.core.pods import Changes, changes


def test_nothing_changes_where_all_is_as_it_should_be():
    assert changes({"worker-0", "worker-4"}, 2, 5) == Changes()


def test_missing_workers_are_started_under_new_names():
    assert changes(set(), 2, 0) == Changes(start=("worker-0", "worker-1"))
    assert changes({"worker-1"}, 3, 2) == Changes(start=("worker-2", "worker-3"))


def test_the_youngest_are_stopped_first():
    observed = {"worker-10", "worker-9", "worker-2"}
    assert changes(observed, 1, 11) == Changes(stop=("worker-9", "worker-10"))
    assert changes(observed, 0, 11) == Changes(stop=("worker-2", "worker-9", "worker-10"))
