"""Seed, epoch and files become the order of slices in each stream."""

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from elasticdl.core import seeds

_MOST_SLICE_RECORDS = 4096
_FEWEST_SLICE_RECORDS = 128


@dataclass(frozen=True)
class Slice:
    """The records [start, end) of one file, by its number in the list of files."""

    file: int
    start: int
    end: int

    @property
    def records(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Cut:
    """Where a stream begins: records before it in the slice that stands at `position`."""

    position: int
    records: int


def slice_records(records: int, streams: int, asked: int) -> int:
    """How many records a slice has: `asked`, or, where that is 0, a number that suits the data.

    Small slices mix better; large ones are opened less often. Few records make small slices, so
    that each stream walks through several of them.
    """
    return asked or max(_FEWEST_SLICE_RECORDS, min(records // (4 * streams), _MOST_SLICE_RECORDS))


class Plan:
    """Which records each stream walks through, in which order, in each epoch.

    In each epoch the slices stand in an order permuted by (seed, epoch); that sequence is cut into
    as many parts of equal record count as there are streams. Slices at a cut belong in part to the
    one, in part to the next stream. What is kept in memory does not grow with the records.

    Args:
        records: the number of records of each file.
        slice_records: the most records of a slice.
        streams: the number of streams.
        seed: decides the permutations.
        shuffle: False leaves the slices in the order of the files, in every epoch.
    """

    def __init__(
        self,
        records: Sequence[int],
        *,
        slice_records: int,
        streams: int,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.streams = streams
        self.records = sum(records)
        self.slice_records = slice_records
        self.seed = seed
        self._shuffle = shuffle
        self._files = tuple(records)
        self._first = list(
            itertools.accumulate((-(-count // slice_records) for count in records), initial=0)
        )
        self.slices = self._first[-1]
        # Only the last slice of a file may be short: slice number → records that it lacks.
        self._lacking = {
            after - 1: -count % slice_records
            for after, count in zip(self._first[1:], records, strict=True)
            if count % slice_records
        }
        self._order = functools.lru_cache(maxsize=2)(self._order_of)
        self._cuts = functools.lru_cache(maxsize=2)(self._cuts_of)

    def slice(self, number: int) -> Slice:
        """The slice of this number; slices are numbered through the files, in their order."""
        file = bisect.bisect_right(self._first, number) - 1
        start = (number - self._first[file]) * self.slice_records
        return Slice(file, start, min(start + self.slice_records, self._files[file]))

    def slice_of(self, epoch: int, stream: int, index: int) -> Slice | None:
        """The stream's slice number `index` in this epoch; None past its last."""
        begin, end = self._cuts(epoch)[stream : stream + 2]
        position = begin.position + index
        last = end.position if end.records else end.position - 1
        if position > last or begin == end:
            return None
        whole = self._at(epoch, position)
        start = whole.start + (begin.records if index == 0 else 0)
        stop = whole.start + end.records if position == end.position else whole.end
        return Slice(whole.file, start, stop)

    def _at(self, epoch: int, position: int) -> Slice:
        return self.slice(self._order(epoch)(position) if self._shuffle else position)

    def _order_of(self, epoch: int) -> seeds.Permutation:
        return seeds.Permutation(self.slices, seeds.seed("order", self.seed, epoch))

    def _cuts_of(self, epoch: int) -> tuple[_Cut, ...]:
        """Where the streams begin, and, last, where the sequence ends.

        Before a position stand that many whole slices, less what the short ones among them lack.
        """
        where = self._order(epoch).position if self._shuffle else int
        short = sorted((where(number), lacks) for number, lacks in self._lacking.items())
        cuts = []
        lacking = passed = 0  # records that the first `passed` short slices lack together
        for stream in range(self.streams + 1):
            target = self.records * stream // self.streams
            while passed < len(short):
                position, lacks = short[passed]
                if (position + 1) * self.slice_records - lacking - lacks > target:
                    break
                lacking += lacks
                passed += 1
            position = (target + lacking) // self.slice_records
            cuts.append(_Cut(position, target + lacking - position * self.slice_records))
        return tuple(cuts)
