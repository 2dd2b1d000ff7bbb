"""Failures have a budget, the first one is told, and what they have in common is named."""

from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core.failures import Failure, Verdict, culprits, verdict


def failure(number, *slices):
    return Failure("user_code", f"no {number}.", "frames", f"worker-{number}", slices)


def test_a_failure_within_the_budget_is_told_and_the_job_goes_on():
    assert verdict([failure(0)], 3) == Verdict(
        False,
        "worker-0 failed (no 0); that was failure 1, and max_failures = 3: the job goes on.",
    )


def test_the_budget_is_spent_at_max_failures():
    failures = [failure(number) for number in range(3)]
    assert not verdict(failures[:2], 3).stop
    assert verdict(failures, 3) == Verdict(True, "That was failure 3, and max_failures = 3.")


def test_where_one_failure_is_too_many_there_is_nothing_to_add_to_it():
    assert verdict([failure(0)], 1) == Verdict(True, "")


def test_the_slice_that_all_failures_were_at_is_named():
    failures = [failure(0, "a.csv, records 0 to 9", "b"), failure(1, "c", "a.csv, records 0 to 9")]
    assert culprits(failures) == ("a.csv, records 0 to 9",)
    assert verdict(failures, 3).reason.endswith(
        "max_failures = 3: the job goes on. It was at a.csv, records 0 to 9 each time."
    )
    assert verdict(failures, 2).reason == (
        "That was failure 2, and max_failures = 2. It was at a.csv, records 0 to 9 each time."
    )


def test_one_failure_accuses_nobody_nor_do_failures_at_different_places():
    assert culprits([failure(0, "a")]) == ()
    assert culprits([failure(0, "a"), failure(1, "b")]) == ()
    assert culprits([failure(0, "a"), failure(1)]) == ()


def test_where_nearly_all_slices_are_at_hand_each_time_none_is_the_culprit():
    assert culprits([failure(0, *"abcd"), failure(1, *"abcd")]) == ()
    assert culprits([failure(0, *"abcd"), failure(1, *"bcdx")]) == ("b", "c", "d")


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=6, unique=True), min_size=1, max_size=5),
    st.integers(1, 5),
)
@settings(deadline=None, derandomize=True)
def test_whatever_fails_the_job_stops_when_the_budget_is_spent_and_not_before(at, max_failures):
    failures = [failure(number, *slices) for number, slices in enumerate(at)]
    came_to = verdict(failures, max_failures)
    assert came_to.stop == (len(failures) >= max_failures)
    for slice_ in culprits(failures):
        assert all(slice_ in each.slices for each in failures)
    assert "\n" not in came_to.reason
