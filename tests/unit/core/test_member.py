"""All members of a generation come to the same decisions, each from what it knows."""

import pytest

from elasticdl.core.member import After, Begin, after_step, begin
from elasticdl.core.membership import Candidate, next_generation
from elasticdl.core.progress import Cursor, Progress, Tail


def generation(*versions):
    """Of members at these versions; None: without a replica."""
    return next_generation(
        1,
        [
            Candidate(f"worker-{n}", "", 0, None if v is None else Progress(v, (Cursor(),)))
            for n, v in enumerate(versions)
        ],
        4,
        {},
    )


@pytest.mark.parametrize(
    ("versions", "begins"),
    [
        ((5, 5), [Begin.KEEP, Begin.KEEP]),
        ((5, 4, 5), [Begin.SEND, Begin.RECEIVE, Begin.KEEP]),
        ((4, 5), [Begin.RECEIVE, Begin.SEND]),
        ((5, None), [Begin.SEND, Begin.RECEIVE]),
        ((None, None), [Begin.SEND, Begin.RECEIVE]),
        ((None,), [Begin.KEEP]),
    ],
)
def test_who_is_behind_receives_what_the_source_sends(versions, begins):
    it = generation(*versions)
    assert [begin(it, rank) for rank in range(len(versions))] == begins


@pytest.mark.parametrize(
    ("regroup", "epoch", "max_steps", "after"),
    [
        (0, 1, 0, After.STEP),
        (0, 2, 0, After.FINISH),
        (0, 1, 7, After.FINISH),
        (1, 1, 0, After.REGROUP),
        # Whoever wants to leave at the last step, or to join, is not left waiting.
        (2, 2, 7, After.REGROUP),
    ],
)
def test_after_a_step_all_step_on_regroup_or_finish(regroup, epoch, max_steps, after):
    at = Progress(7, (Cursor(2), Cursor(epoch)))
    assert after_step(Tail({}, regroup), at, 2, max_steps) is after
