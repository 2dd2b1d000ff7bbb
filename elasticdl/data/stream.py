"""Streams → elements, step by step: read ahead, and kept from one generation to the next."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from elasticdl.core import streams
from elasticdl.core.progress import Cursor, Used
from elasticdl.data import pipeline
from elasticdl.errors import Cancelled


class Streams:
    """The streams that a member hosts, for as long as it trains; of one thread.

    What was read ahead of a stream stays for as long as the stream is hosted. The elements taken
    last stay within reach until `commit` or the next `take`.

    Args:
        pool: threads that read ahead.
        epochs: how often each stream is walked through.
        share: the most elements that a step takes of a stream.
    """

    def __init__(
        self,
        plan: streams.Plan,
        opener: pipeline.Opener,
        pool: ThreadPoolExecutor,
        *,
        epochs: int,
        share: int,
    ) -> None:
        self._plan = plan
        self._opener = opener
        self._pool = pool
        self._epochs = epochs
        self._first = share + 1
        # Small elements come in blocks; of large ones no more is kept than a few steps need.
        self._ahead = max(4 * share, min(32, opener.block))
        self._condition = threading.Condition()
        self._streams: dict[int, _Stream] = {}
        self._expected: _Expected | None = None
        self._closed = False
        self._unclosed: deque[_Source] = deque()
        # Calls of `_work` that no thread has begun, threads that still read for closed streams, and
        # those that stand in for them.
        self._offered = self._held = self._stand_ins = 0

    def host(self, cursors: Mapping[int, Cursor]) -> None:
        """From now on hosts these streams, each of which stands at its cursor.

        A stream is kept if it stands there already, with or without the elements taken last: these
        are put back, or are in the model by another member's word. Others are opened.
        """
        with self._condition:
            self._forget_expected()
            for number, stream in list(self._streams.items()):
                if number not in cursors or not stream.stands_at(cursors[number]):
                    self._drop(self._streams.pop(number))
            self._streams = {
                number: self._streams.get(number) or self._opened(number, cursor)
                for number, cursor in sorted(cursors.items())
            }
            self._offer()

    def take(self, epoch: int, shares: Sequence[int] | Mapping[int, int]) -> pipeline.Batch:
        """A step's elements: of each hosted stream as many as `shares` says for it.

        Raises:
            CorruptData, UserError, UserCodeError
            Cancelled: closed meanwhile.
        """
        asked = self._asked(epoch, shares)
        with self._condition:
            if self._expected is not None and self._expected.asked != asked:
                self._forget_expected()
            expected, self._expected = self._expected, None
            taken = expected.taken if expected is not None else None
            if taken is None:
                expected = None
                self._want(asked)
                while (taken := self._taken(asked)) is None:
                    self._condition.wait()
            for number, (pieces, used) in taken.items():
                self._streams[number].took(pieces, used.cursor)
            self._offer()
        return expected.batch.result() if expected is not None else self._batch(taken)

    def expect(self, epoch: int, shares: Sequence[int] | Mapping[int, int]) -> None:
        """Puts together, in the background, what the next `take` is likely to ask for."""
        asked = self._asked(epoch, shares)
        with self._condition:
            self._forget_expected()
            self._expected = _Expected(asked)
            self._want(asked)
            self._offer()

    def commit(self) -> None:
        """What was taken last is in the model."""
        with self._condition:
            for stream in self._streams.values():
                stream.commit()

    def close(self) -> None:
        """Stops reading ahead; nothing can be taken any more."""
        with self._condition:
            self._closed = True
            self._expected = None
            for stream in self._streams.values():
                self._drop(stream)
            self._condition.notify_all()
            unclosed, self._unclosed = self._unclosed, deque()
        for source in unclosed:
            source.close()

    def _asked(self, epoch: int, shares: Sequence[int] | Mapping[int, int]) -> "_Asked":
        return _Asked(epoch, {number: shares[number] for number in self._streams})

    def _batch(self, taken: "_Taken") -> pipeline.Batch:
        pieces = [piece for of_stream, _ in taken.values() for piece in of_stream]
        components = self._opener.joined(
            [(piece.slice, piece.block, piece.elements) for piece in pieces]
        )
        return pipeline.Batch(
            components,
            tuple(used.elements for _, used in taken.values()),
            {number: used for number, (_, used) in taken.items()},
            {number: tuple(p.slice for p in some) for number, (some, _) in taken.items()},
        )

    # ---- under the lock ----------------------------------------------------------------------

    def _opened(self, number: int, cursor: Cursor) -> "_Stream":
        blocks = self._opener.walk(self._steps(number, cursor), first=self._first)
        return _Stream(cursor, _pieces(blocks, self._epochs), self._ahead)

    def _steps(self, number: int, cursor: Cursor) -> Iterator[pipeline.Step]:
        index, skip = cursor.slice, cursor.element
        for epoch in range(cursor.epoch, self._epochs):
            while (slice_ := self._plan.slice_of(epoch, number, index)) is not None:
                yield pipeline.Step(epoch, index, slice_, skip)
                index, skip = index + 1, 0
            index = skip = 0

    def _drop(self, stream: "_Stream") -> None:
        if not stream.closed:
            stream.closed = True
            stream.ready.clear()
            if stream.filling:
                self._held += 1
            else:
                self._unclosed.append(stream.source)

    def _want(self, asked: "_Asked") -> None:
        for number, share in asked.shares.items():
            self._streams[number].target = max(self._ahead, share + 1)
        self._offer()

    def _taken(self, asked: "_Asked") -> "_Taken | None":
        """What is asked for, if all of it is there."""
        if self._closed:
            raise Cancelled("the streams are closed")
        for number, share in asked.shares.items():
            if not self._streams[number].has(asked.epoch, share):
                failure = self._streams[number].failure
                if failure is not None:
                    raise failure
                return None
        return {
            number: self._streams[number].take(asked.epoch, share)
            for number, share in asked.shares.items()
        }

    def _forget_expected(self) -> None:
        if self._expected is not None and self._expected.taken is not None:
            for number, (pieces, _) in self._expected.taken.items():
                self._streams[number].put_back(pieces)
        self._expected = None

    # ---- in the background -------------------------------------------------------------------

    def _offer(self) -> None:
        """Calls as many threads as have something to do; under the lock."""
        if self._closed:
            return
        due = sum(stream.hungry for stream in self._streams.values()) + len(self._unclosed)
        due += self._expected is not None and self._can_take(self._expected)
        for _ in range(due - self._offered):
            self._offered += 1
            self._pool.submit(self._work)
        for _ in range(min(due, self._held - self._stand_ins)):
            self._stand_ins += 1
            threading.Thread(target=self._stand_in, name="read-ahead", daemon=True).start()

    def _work(self) -> None:
        with self._condition:
            self._offered -= 1
            job = self._job()
        if job is not None:
            job()

    def _stand_in(self) -> None:
        """Does what threads of the pool would do that still read for streams closed long ago."""
        while True:
            with self._condition:
                job = self._job()
                if job is None:
                    self._stand_ins -= 1
                    return
            job()

    def _job(self) -> Callable[[], None] | None:
        """What is most urgent; under the lock."""
        if self._closed:
            return None
        expected = self._expected
        if expected is not None and self._can_take(expected):
            expected.taken = self._taken(expected.asked)
            self._offer()
            return lambda: self._put_together(expected)
        # The first blocks of all streams before the second of any.
        hungry = [stream for stream in self._streams.values() if stream.hungry]
        if hungry:
            stream = min(hungry, key=lambda stream: stream.elements)
            stream.filling = True
            return lambda: self._fill(stream)
        return self._unclosed.popleft().close if self._unclosed else None

    def _can_take(self, expected: "_Expected") -> bool:
        epoch, shares = expected.asked.epoch, expected.asked.shares
        return expected.taken is None and all(
            self._streams[number].has(epoch, share) for number, share in shares.items()
        )

    def _put_together(self, expected: "_Expected") -> None:
        assert expected.taken is not None
        try:
            expected.batch.set_result(self._batch(expected.taken))
        except BaseException as error:
            expected.batch.set_exception(error)

    def _fill(self, stream: "_Stream") -> None:
        piece, failure = None, None
        try:
            piece = next(stream.source, None)
        except BaseException as error:
            failure = error
        with self._condition:
            stream.filling = False
            stream.failure = failure
            stream.end = piece is None
            closed = stream.closed
            if closed:
                self._held -= 1
            elif piece is not None:
                stream.ready.append(piece)
                stream.elements += len(piece.elements)
            self._offer()
            self._condition.notify_all()
        # One that is closed from here on is closed by whoever finds it among the unclosed.
        if closed:
            stream.source.close()


class _Stream:
    """One hosted stream; under the lock of its `Streams`.

    Attributes:
        at: where it stands, the elements taken last not counted.
        after: where it stands behind those.
        last: the pieces taken last, if they are not committed.
        target: elements to keep ready.
    """

    def __init__(self, cursor: Cursor, source: "_Source", target: int) -> None:
        self.at = self.after = cursor
        self.last: list[_Piece] = []
        self.source = source
        self.target = target
        self.ready: deque[_Piece] = deque()
        self.elements = 0
        self.failure: BaseException | None = None
        self.filling = self.closed = self.end = False

    @property
    def hungry(self) -> bool:
        done = self.filling or self.closed or self.end or self.failure is not None
        return not done and self.elements < self.target

    def has(self, epoch: int, count: int) -> bool:
        """Whether `take` can be called."""
        # One element more than asked: only then is it known where the stream stands.
        for piece in self.ready:
            if piece.epoch != epoch or len(piece.elements) > count:
                return True
            count -= len(piece.elements)
        return False

    def take(self, epoch: int, count: int) -> tuple[list["_Piece"], Used]:
        """The next `count` elements of this epoch, fewer only at its end, and what that leaves."""
        taken: list[_Piece] = []
        missing = count
        while missing and self.ready[0].epoch == epoch:
            piece = self.ready.popleft()
            part = piece.only(missing)
            if len(part.elements) < len(piece.elements):
                self.ready.appendleft(piece.rest(missing))
            taken.append(part)
            missing -= len(part.elements)
        self.elements -= count - missing
        return taken, Used(count - missing, self.ready[0].cursor)

    def put_back(self, pieces: Sequence["_Piece"]) -> None:
        """Undoes a `take` that gave these pieces, if it was the last one."""
        self.ready.extendleft(reversed(pieces))
        self.elements += sum(len(piece.elements) for piece in pieces)

    def took(self, pieces: list["_Piece"], after: Cursor) -> None:
        self.at, self.last, self.after = self.after, pieces, after

    def commit(self) -> None:
        self.at, self.last = self.after, []

    def stands_at(self, cursor: Cursor) -> bool:
        """Whether the stream could be brought there."""
        if self.failure is not None or cursor not in (self.at, self.after):
            return False
        if cursor != self.after:
            self.put_back(self.last)
            self.last, self.after = [], self.at
        self.commit()
        return True


@dataclass(frozen=True)
class _Piece:
    """The elements `elements` of a block; without a block, the place where a stream ends."""

    epoch: int
    index: int
    slice: streams.Slice
    block: pipeline.Block
    elements: range

    @property
    def cursor(self) -> Cursor:
        """The cursor whose next element is this piece's first.

        Where it stands does not depend on where the stream was opened: slices without elements
        are passed over, also at the beginning of an epoch.
        """
        return Cursor(self.epoch, self.index, self.block.first + self.elements.start)

    def only(self, count: int) -> "_Piece":
        return _Piece(self.epoch, self.index, self.slice, self.block, self.elements[:count])

    def rest(self, count: int) -> "_Piece":
        return _Piece(self.epoch, self.index, self.slice, self.block, self.elements[count:])


@dataclass(frozen=True)
class _Asked:
    """Elements of each hosted stream, all of one epoch."""

    epoch: int
    shares: dict[int, int]


@dataclass
class _Expected:
    """A `take` that is likely to come; `batch` is promised once it is `taken`."""

    asked: _Asked
    taken: "_Taken | None" = None
    batch: Future[pipeline.Batch] = field(default_factory=Future)


_Taken = dict[int, tuple[list[_Piece], Used]]
_Source = Generator[_Piece, None, None]

_NOWHERE = streams.Slice(0, 0, 0)
_NOTHING = pipeline.Block((), 0, 0)


def _pieces(
    blocks: Generator[tuple[pipeline.Step, pipeline.Block], None, None], epochs: int
) -> _Source:
    """All pieces of a walk; the last one has no elements and is where the stream ends."""
    try:
        for step, block in blocks:
            yield _Piece(step.epoch, step.index, step.slice, block, range(block.elements))
        yield _Piece(epochs, 0, _NOWHERE, _NOTHING, range(0))
    finally:
        blocks.close()
