"""Sums of float32 numbers that have the same bits in whatever order they are added.

Each number is first rounded to a multiple of a power of two that is so coarse that no addition
rounds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of rows at a time: with 16 rows, their float64 stay in a core's cache.
_COLUMNS = 1 << 13

_PRECISION = 52  # bits between a sum and what its terms are rounded to


class Tensors:
    """Tensors that lie side by side in rows of float32.

    Args:
        sizes: how many numbers each has.
        rows: how many there are at most at a time.
        pool, threads: who computes; the caller is one of the threads.
    """

    def __init__(
        self, sizes: Sequence[int], rows: int, pool: Executor | None = None, threads: int = 1
    ) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._begins: NDArray[np.int64] = np.cumsum(self._sizes) - self._sizes
        self._tensor = np.repeat(np.arange(len(sizes), dtype=np.int32), self._sizes)
        self.length = len(self._tensor)
        self._pool = pool
        chunks = -(-self.length // _COLUMNS)
        each = -(-chunks // max(1, min(threads, chunks // 2))) * _COLUMNS
        # Memory that is new in each step costs more than what is computed in it.
        self._parts = [
            _Part(begin, min(begin + each, self.length), np.empty((rows + 2, _COLUMNS)))
            for begin in range(0, self.length, each)
        ]
        self._largest = np.empty(self.length, np.float32)

    def maxima(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """The largest absolute value of each tensor; inf for one with a NaN.

        Args:
            rows: at least one, [length] each.
        """

        def find(part: _Part) -> None:
            room = part.room.view(np.float32)
            for first, last in part.chunks():
                some = room[: len(rows), : last - first]
                for absolute, row in zip(some, rows, strict=True):
                    np.abs(row[first:last], out=absolute)
                np.maximum.reduce(some, 0, out=self._largest[first:last])

        self._spread(find)
        found = np.zeros(len(self._sizes))
        # `reduceat` takes a number of the next tensor for one that has none.
        some = self._sizes > 0
        found[some] = np.maximum.reduceat(self._largest, self._begins[some])
        found[np.isnan(found)] = np.inf
        return found

    def add(
        self,
        rows: Sequence[NDArray[np.float32]],
        offsets: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Adds the exact sum of the rounded rows.

        Args:
            rows: [length] each.
            offsets: of each tensor; see `offsets`.
            out: [length].
        """
        quanta = offsets / (1.5 * 2.0**_PRECISION)

        def sum_up(part: _Part) -> None:
            for first, last in part.chunks():
                tensor = self._tensor[first:last]
                shift, quantum = part.room[-2:, : last - first]
                np.take(offsets, tensor, out=shift, mode="clip")
                np.take(quanta, tensor, out=quantum, mode="clip")
                shifted = part.room[: len(rows), : last - first]
                for number, row in enumerate(rows):
                    shifted[number] = row[first:last]
                shifted += shift
                # Float64s between 2**e and 2**(e + 1) are numbered by their bits: as integers, they
                # differ from the offset by how many quanta have been added to it.
                total = np.add.reduce(shifted.view(np.int64), 0)
                total -= shift.view(np.int64) * len(rows)
                quantum *= total
                out[first:last] += quantum

        with np.errstate(invalid="ignore"):
            self._spread(sum_up)

    def _spread(self, work: Callable[["_Part"], None]) -> None:
        first, *others = self._parts
        waits = [self._pool.submit(work, part) for part in others] if self._pool else []
        for part in [first] if self._pool else self._parts:
            work(part)
        for wait in waits:
            wait.result()


@dataclass(frozen=True)
class _Part:
    """The columns [begin, end), and memory to treat some of them at a time."""

    begin: int
    end: int
    room: NDArray[np.float64]

    def chunks(self) -> Iterator[tuple[int, int]]:
        for first in range(self.begin, self.end, _COLUMNS):
            yield first, min(first + _COLUMNS, self.end)


def maximum(values: NDArray[np.float32]) -> float:
    """The largest absolute value; inf if there is a NaN, 0 if there is nothing."""
    largest = float(np.max(np.abs(values), initial=0.0))
    return largest if largest == largest else np.inf


def offsets(maxima: NDArray[np.float64], terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is added to numbers to round them, and then taken away again.

    Args:
        maxima: [n]: no number's absolute value is larger.
        terms: [n]: nowhere are more such numbers added up.

    Returns:
        [n]; NaN where the maximum is not finite.
    """
    # With limit < 2**e, float64s from 2**e to 2**(e + 1) are 2**(e - 52) apart. Shifted into the
    # middle, numbers up to limit / 2 stay among them; and sums up to 2**e of such multiples are
    # float64s.
    with np.errstate(invalid="ignore"):
        _, exponents = np.frexp(maxima * np.maximum(terms, 2.0))
    shifts: NDArray[np.float64] = np.ldexp(1.5, exponents)
    shifts[~np.isfinite(maxima)] = np.nan
    return shifts


def add_entries(
    values: NDArray[np.float32],
    indices: NDArray[np.int64],
    offset: float,
    out: NDArray[np.float64],
) -> None:
    """Adds each rounded value to the row that its index names.

    Args:
        values: [n, …].
        indices: [n].
        offset: see `offsets`.
        out: the rows, one behind the other.
    """
    width = math.prod(values.shape[1:])
    rounded = values.reshape(-1, width).astype(np.float64)
    rounded += offset
    rounded -= offset
    if np.isnan(offset):
        # What is not finite spoils the whole tensor, wherever its numbers are added.
        out[...] = np.nan
        return
    places = indices[:, None] * width + np.arange(width)
    np.add.at(out, places.reshape(-1), rounded.reshape(-1))


def aligned(length: int) -> NDArray[np.float64]:
    """Zeros, at an address that TensorFlow takes as it is."""
    room = np.zeros(length + 7)
    first = -(room.ctypes.data // 8) % 8
    return room[first : first + length]
