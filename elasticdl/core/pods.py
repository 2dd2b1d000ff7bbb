"""Processes that are → processes that should be."""

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Changes:
    """Workers to start and to stop, in a fixed order."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def changes(observed: Set[str], wanted: int, next_number: int) -> Changes:
    """What makes the `observed` workers `wanted` in number; a name is never used twice."""
    missing = max(0, wanted - len(observed))
    surplus = max(0, len(observed) - wanted)
    by_number = sorted(observed, key=lambda worker: (len(worker), worker))
    return Changes(
        start=tuple(f"worker-{next_number + place}" for place in range(missing)),
        stop=tuple(by_number[len(by_number) - surplus :]),
    )
