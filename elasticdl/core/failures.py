"""What has failed so far → whether the job goes on, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_SLICES_NAMED = 3


@dataclass(frozen=True)
class Failure:
    """Why something failed: `kind` is user, user_code or bug (who must act).

    `worker` is who says so, if it is one; `slices` are those that it was at, in words.
    """

    kind: str
    message: str
    trace: str = ""
    worker: str = ""
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether the job stops, and the sentence that says why or why not."""

    stop: bool
    reason: str


def verdict(failures: Sequence[Failure], max_failures: int) -> Verdict:
    """What follows from the failures so far, of which the last one is new."""
    last, count = failures[-1], len(failures)
    found = culprits(failures)
    at = f" It was at {' and '.join(found)} each time." if found else ""
    if count >= max_failures:
        if count == 1:
            return Verdict(True, "")
        return Verdict(True, f"That was failure {count}, and max_failures = {max_failures}.{at}")
    return Verdict(
        False,
        f"{last.worker} failed ({last.message.rstrip('.')}); that was failure {count}, and "
        f"max_failures = {max_failures}: the job goes on.{at}",
    )


def culprits(failures: Sequence[Failure]) -> tuple[str, ...]:
    """The slices that all failures have in common, if there are several failures and few such
    slices: then it is these records, and not the machine.
    """
    if len(failures) < 2:
        return ()
    common = [
        slice_
        for slice_ in failures[0].slices
        if all(slice_ in failure.slices for failure in failures[1:])
    ]
    return tuple(common) if len(common) <= _MOST_SLICES_NAMED else ()
