"""The replicated cursors: advance, compare, tail ⇄ cursors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cursor(NamedTuple):
    """The next element of a stream: `element` elements of slice `slice` are already trained.

    `slice` counts the stream's slices within the epoch. A stream whose epoch is over stands at the
    beginning of the next one, (epoch + 1, 0, 0).
    """

    epoch: int = 0
    slice: int = 0
    element: int = 0


@dataclass(frozen=True)
class Progress:
    """The cursors of all streams after `version` committed steps."""

    version: int
    cursors: tuple[Cursor, ...]

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to; streams that have ended it wait."""
        return min(cursor.epoch for cursor in self.cursors)

    def finished(self, epochs: int, max_steps: int) -> bool:
        """Whether all streams are at their end, or `max_steps` (0: no limit) are committed."""
        return self.epoch >= epochs or bool(max_steps and self.version >= max_steps)


class Used(NamedTuple):
    """What a step took from one stream, and where that left it."""

    elements: int
    cursor: Cursor


def beginning(empty: Sequence[bool], epochs: int) -> Progress:
    """The progress of a job that has committed nothing; `empty` streams are at their end."""
    return Progress(0, tuple(Cursor(epochs if none else 0) for none in empty))


def shares(progress: Progress, batch_size: int) -> tuple[int, ...]:
    """How many elements the next step asks of each stream.

    Of S streams, each gives floor(B/S) or ceil(B/S) elements of a global batch of B; which of the
    two rotates with the version. Streams that have ended the epoch give none, and those that still
    have elements take their turns, so that every step has an element.
    """
    streams = len(progress.cursors)
    least, extra = divmod(batch_size, streams)
    active = [s for s, c in enumerate(progress.cursors) if c.epoch == progress.epoch]
    given = [0] * streams
    for stream in active:
        given[stream] = least
    first = progress.version * extra
    for turn in range(min(extra, len(active))):
        given[active[(first + turn) % len(active)]] += 1
    return tuple(given)


def advanced(progress: Progress, used: Mapping[int, Used]) -> Progress:
    """The progress after one more step, which took `used` of each stream."""
    cursors = tuple(
        used[stream].cursor if stream in used else cursor
        for stream, cursor in enumerate(progress.cursors)
    )
    return Progress(progress.version + 1, cursors)


# ---- the tail ---------------------------------------------------------------------------------
# The tail rides behind the gradients through a float32 sum over all members. Each entry of a stream
# is non-zero at its host only, and a float32 holds integers below 2**24 exactly, so a number of up
# to 44 bits travels as two digits of 22. Entries of all streams stand side by side: whether it has
# a host, the low digits of its numbers, then the high ones, which are nearly always 0.

_DIGIT = 22
_BASE = 1 << _DIGIT
_LOW = _BASE - 1
_NUMBERS = 4  # elements, epoch, slice, element
_WIDTH = 1 + 2 * _NUMBERS
_HEAD = 1  # members that ask to regroup
_NONE: Mapping[int, "Used"] = {}
_NOTHING = Used(0, Cursor())


@dataclass(frozen=True)
class Tail:
    """What all members together did in a step."""

    used: dict[int, Used]
    regroup: int


def tail_length(streams: int) -> int:
    """Floats in a tail."""
    return _HEAD + streams * _WIDTH


def encode(used: Mapping[int, Used], regroup: bool, streams: int) -> list[float]:
    """One member's tail: what it used of the streams that it hosts, and whether to regroup."""
    tail = [0.0] * tail_length(streams)
    tail[0] = regroup
    for stream, (elements, cursor) in used.items():
        at = _HEAD + stream
        tail[at] = 1.0
        for number in (elements, *cursor):
            at += streams
            if number > _LOW:
                tail[at + _NUMBERS * streams] = number >> _DIGIT
                number &= _LOW
            tail[at] = number
    return tail


def decode(tail: Sequence[float], mine: Mapping[int, Used] = _NONE) -> Tail:
    """The sum of all members' tails.

    Args:
        mine: what this member has encoded, which need not be made anew.

    Raises:
        ValueError: two members, or none, spoke for a stream.
    """
    streams = (len(tail) - _HEAD) // _WIDTH
    hosts, *low = (
        tail[_HEAD + place * streams : _HEAD + (place + 1) * streams]
        for place in range(1 + _NUMBERS)
    )
    if hosts.count(1) != streams:
        stream, members = next((s, int(n)) for s, n in enumerate(hosts) if n != 1)
        raise ValueError(f"stream {stream}: expected one host; {members} members spoke for it")
    high = tail[_HEAD + (1 + _NUMBERS) * streams :]
    if any(high):
        digits = iter(high)
        low = [[one + next(digits) * _BASE for one in each] for each in low]
    used = dict.fromkeys(range(streams), _NOTHING)
    used.update(mine)
    for stream, (elements, epoch, slice_, element) in enumerate(zip(*low, strict=True)):
        if stream not in mine:
            used[stream] = Used(int(elements), Cursor(int(epoch), int(slice_), int(element)))
    return Tail(used, int(tail[0]))
