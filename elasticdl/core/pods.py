"""Processes that are → processes that should be."""

from collections.abc import Set
from dataclasses import dataclass

_LONGEST_DELAY_S = 30.0
_MOST_DOUBLINGS = 10


@dataclass(frozen=True)
class Changes:
    """Workers to start and to stop, in a fixed order."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def changes(
    observed: Set[str], wanted: int, next_number: int, needed: Set[str] = frozenset()
) -> Changes:
    """What makes the `observed` workers `wanted` in number; a name is never used twice.

    Those that are `needed` are not stopped, even if there are more of them than are wanted.
    """
    missing = max(0, wanted - len(observed))
    surplus = max(0, len(observed) - wanted)
    idle = sorted(observed - needed, key=natural)
    return Changes(
        start=tuple(f"worker-{next_number + place}" for place in range(missing)),
        stop=tuple(idle[max(0, len(idle) - surplus) :]),
    )


def delay_s(early_losses: int) -> float:
    """How long to wait before another worker is started, after so many in a row were lost before
    they had begun to work.
    """
    if early_losses < 2:
        return 0.0
    return min(2.0 ** min(early_losses - 2, _MOST_DOUBLINGS), _LONGEST_DELAY_S)


def natural(worker: str) -> tuple[int, str]:
    """Orders names by their numbers: worker-10 comes after worker-9."""
    return len(worker), worker


def number_of(worker: str) -> int:
    """The number in a worker's name; -1 if it has none."""
    digits = worker.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
