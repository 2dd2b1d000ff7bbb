"""What a member does about its replica when a generation begins, and after each step of it."""

import enum

from elasticdl.core.membership import Generation
from elasticdl.core.progress import Progress, Tail


class Begin(enum.Enum):
    """Where the replica comes from with which a member begins a generation."""

    KEEP = "its own, as it is"
    SEND = "its own, which others receive"
    RECEIVE = "the source's, in place of its own"


def begin(generation: Generation, rank: int) -> Begin:
    """What this member does before the generation's first step, once all members have met.

    The source of a generation that restores has a replica by then: the newest checkpoint's, or the
    initial one.
    """
    if rank in generation.behind:
        return Begin.RECEIVE
    if rank == generation.source and generation.behind:
        return Begin.SEND
    return Begin.KEEP


class After(enum.Enum):
    """How a member goes on after a step that it has committed."""

    STEP = "with the next step"
    REGROUP = "by asking for the next generation"
    FINISH = "with the result, which rank 0 writes while the others wait"


def after_step(tail: Tail, progress: Progress, epochs: int, max_steps: int) -> After:
    """What follows from a step's tail and from the `progress` that it has led to.

    All members that have committed the step come to the same answer. Whoever has asked to regroup
    is not left alone by the others, not even at the end of all steps.
    """
    if tail.regroup:
        return After.REGROUP
    return After.FINISH if progress.finished(epochs, max_steps) else After.STEP
