"""Stream or lease → elements: slices through the user's input function, read ahead, replayable."""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from elasticdl.core import seeds, streams
from elasticdl.core.progress import Cursor, Used
from elasticdl.data import sources
from elasticdl.errors import ElasticDLError, UserCodeError, UserError

_BLOCK_BYTES = 1 << 20
_MOST_BLOCK = 256
_UNKNOWN_DIMENSION = 64
_ENDLESS = 1000  # elements for each record from which on an input function counts as endless

Component = Any
"""One leaf of a batch: an array [n, ...], or a string, ragged or sparse tensor."""


@dataclass(frozen=True)
class Block:
    """Successive elements of one slice, as one batch.

    Args:
        components: the leaves of the batch, in `tf.nest` order.
        elements: how many.
        first: the place of the first one among the slice's elements.
    """

    components: tuple[Component, ...]
    elements: int
    first: int


@dataclass(frozen=True)
class Batch:
    """Elements of some streams, stream by stream.

    Args:
        components: the leaves, in `tf.nest` order; empty if there are no elements.
        counts: how many elements come from each of the streams asked, in their order.
        used: what was taken of each stream.
        slices: the slices that the elements come from, for messages.
    """

    components: tuple[Component, ...]
    counts: tuple[int, ...]
    used: dict[int, Used]
    slices: dict[int, tuple[streams.Slice, ...]]

    @property
    def elements(self) -> int:
        return sum(self.counts)


class Opener:
    """Slices → blocks of elements, the same ones each time.

    Args:
        files: the paths of the data set's files.
        create_dataset: the user's input function, from a dataset of serialized records.
        seed: of the job.
    """

    # Seeds of a pipeline's operations are drawn from TensorFlow's global generator while it is
    # built, one pipeline at a time.
    _building = threading.Lock()

    def __init__(
        self,
        files: Sequence[str],
        create_dataset: Callable[[tf.data.Dataset], tf.data.Dataset],
        seed: int,
    ) -> None:
        self.files = tuple(files)
        self._create_dataset = create_dataset
        self._seed = seed
        self.element_spec: Any = None
        self._block = 0

    def dataset(self, slice_: streams.Slice, epoch: int) -> tf.data.Dataset:
        """The slice's elements in this epoch; each call yields the same ones.

        Raises:
            CorruptData, UserCodeError
        """
        records = sources.read(self.files[slice_.file], slice_.start, slice_.end)
        with Opener._building:
            _reseed(seeds.seed("slice", self._seed, epoch, slice_.file, slice_.start))
            raw = tf.data.Dataset.from_tensor_slices(tf.constant(records, tf.string))
            elements = self._create_dataset(raw)
        if self.element_spec is None:
            self.element_spec = elements.element_spec
        return elements

    def blocks(self, slice_: streams.Slice, epoch: int, skip: int = 0) -> Iterator[Block]:
        """The slice's elements but the first `skip`, in blocks.

        Raises:
            CorruptData: a record file is damaged.
            UserError, UserCodeError: the user's input function fails on these records.
        """
        elements = self.dataset(slice_, epoch)
        if not self._block:
            self._block = block_elements(elements.element_spec)
        batches = elements.skip(skip) if skip else elements
        batches = batches.batch(self._block).prefetch(1).with_options(_options())
        first = skip
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise self._problem(slice_, error) from error
            components = tuple(_component(leaf) for leaf in tf.nest.flatten(batch))
            count = _length(components[0])
            yield Block(components, count, first)
            first += count
            if first > _ENDLESS * (slice_.records + 1000):
                raise UserError(
                    f"create_dataset: expected an end; got more than {first} elements from "
                    f"{slice_.records} records. Remove repeat(): --epochs says how often."
                )

    def where(self, slice_: streams.Slice) -> str:
        """The slice in words."""
        return f"{self.files[slice_.file]}, records {slice_.start} to {slice_.end - 1}"

    def _problem(self, slice_: streams.Slice, error: Exception) -> ElasticDLError:
        text = str(getattr(error, "message", error)).strip()
        if "Cannot batch tensors with different shapes" in text:
            return UserError(
                f"create_dataset: expected elements of one shape; {first_line(text)} "
                f"({self.where(slice_)}). Pad them, or yield ragged tensors."
            )
        return UserCodeError(f"create_dataset: {first_line(text)} ({self.where(slice_)})", text)


class Stream:
    """One stream from a cursor on, read ahead by threads of `pool`.

    Args:
        epochs: how often the stream is walked through.
        ahead: elements to keep ready.
    """

    def __init__(
        self,
        plan: streams.Plan,
        number: int,
        cursor: Cursor,
        opener: Opener,
        pool: ThreadPoolExecutor,
        *,
        epochs: int,
        ahead: int,
    ) -> None:
        self._plan = plan
        self._number = number
        self._opener = opener
        self._pool = pool
        self._epochs = epochs
        self._ahead = ahead
        self._source = self._walk(cursor)
        self._condition = threading.Condition()
        self._ready: deque[_Piece] = deque()
        self._elements = 0
        self._filling = False
        self._failure: BaseException | None = None
        self._closed = False
        self._end = False
        with self._condition:
            self._fill_more()

    def take(self, epoch: int, count: int) -> tuple[list["_Piece"], Used]:
        """The next `count` elements of this epoch, fewer only at its end, and what that leaves."""
        taken: list[_Piece] = []
        missing = count
        with self._condition:
            # One element more than asked: only then is it known where the stream stands.
            while True:
                self._wait_for_piece()
                piece = self._ready[0]
                if piece.epoch != epoch or not missing:
                    break
                part = piece.elements[:missing] if piece.block else piece.elements
                if len(part) == len(piece.elements):
                    self._ready.popleft()
                else:
                    self._ready[0] = piece.rest(len(part))
                taken.append(piece.only(len(part)))
                missing -= len(part)
                self._elements -= len(part)
                self._fill_more()
            cursor = piece.cursor
        return taken, Used(count - missing, cursor)

    def close(self) -> None:
        """Stops reading ahead."""
        with self._condition:
            self._closed = True
            self._ready.clear()

    def _wait_for_piece(self) -> None:
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            self._fill_more()
            self._condition.wait()

    def _fill_more(self) -> None:
        wanted = self._elements < self._ahead and not self._end and not self._closed
        if wanted and not self._filling and self._failure is None:
            self._filling = True
            self._pool.submit(self._fill)

    def _fill(self) -> None:
        try:
            piece = next(self._source, None)
        except BaseException as error:
            with self._condition:
                self._failure, self._filling = error, False
                self._condition.notify_all()
            return
        with self._condition:
            self._filling = False
            if piece is None:
                self._end = True
            elif not self._closed:
                self._ready.append(piece)
                self._elements += len(piece.elements)
                self._fill_more()
            self._condition.notify_all()

    def _walk(self, cursor: Cursor) -> Iterator["_Piece"]:
        """All pieces from the cursor on; a piece without elements is where the stream ends."""
        index, skip = cursor.slice, cursor.element
        for epoch in range(cursor.epoch, self._epochs):
            while (slice_ := self._plan.slice_of(epoch, self._number, index)) is not None:
                for block in self._opener.blocks(slice_, epoch, skip):
                    yield _Piece(epoch, index, slice_, block, range(block.elements))
                index, skip = index + 1, 0
            index = 0
        yield _Piece(self._epochs, 0, None, None, range(0))


@dataclass(frozen=True)
class _Piece:
    """The elements `elements` of a block."""

    epoch: int
    index: int
    slice: streams.Slice | None
    block: Block | None
    elements: range

    @property
    def cursor(self) -> Cursor:
        """The cursor whose next element is this piece's first.

        The first element of an epoch is always found from the epoch's very beginning, so that a
        stream that waits for its next epoch stands at (epoch, 0, 0).
        """
        if self.block is None:
            return Cursor(self.epoch, 0, 0)
        return Cursor(self.epoch, self.index, self.block.first + self.elements.start)

    def only(self, count: int) -> "_Piece":
        return _Piece(self.epoch, self.index, self.slice, self.block, self.elements[:count])

    def rest(self, count: int) -> "_Piece":
        return _Piece(self.epoch, self.index, self.slice, self.block, self.elements[count:])


class Streams:
    """The streams that a member hosts, for as long as its generation lasts."""

    def __init__(
        self,
        plan: streams.Plan,
        cursors: dict[int, Cursor],
        opener: Opener,
        pool: ThreadPoolExecutor,
        *,
        epochs: int,
        share: int,
    ) -> None:
        self._streams = {
            number: Stream(
                plan, number, cursor, opener, pool, epochs=epochs, ahead=max(4 * share, 32)
            )
            for number, cursor in sorted(cursors.items())
        }

    def take(self, epoch: int, shares: Sequence[int] | Mapping[int, int]) -> Batch:
        """A step's elements: of each hosted stream as many as `shares` says for it."""
        pieces: list[_Piece] = []
        counts, used, slices = [], {}, {}
        for number, stream in self._streams.items():
            taken, used[number] = stream.take(epoch, shares[number])
            counts.append(used[number].elements)
            pieces += taken
            slices[number] = tuple(piece.slice for piece in taken if piece.slice is not None)
        return Batch(_joined(pieces), tuple(counts), used, slices)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


def part_of(batch: Batch, begin: int, end: int) -> tuple[Component, ...]:
    """The components of the elements [begin, end) of a batch."""
    return tuple(_cut(component, begin, end) for component in batch.components)


def block_elements(element_spec: Any) -> int:
    """How many elements make about a mebibyte, but at most 256: what is read ahead at a time."""
    size = 0
    for leaf in tf.nest.flatten(element_spec):
        shape = getattr(leaf, "shape", tf.TensorShape([]))
        dimensions = shape.as_list() if shape.rank is not None else [_UNKNOWN_DIMENSION**2]
        width = leaf.dtype.size if getattr(leaf, "dtype", tf.string) != tf.string else 64
        size += width * int(np.prod([_UNKNOWN_DIMENSION if d is None else d for d in dimensions]))
    return int(min(max(_BLOCK_BYTES // max(size, 1), 1), _MOST_BLOCK))


def first_line(text: str) -> str:
    """What a message of TensorFlow says, without the graph nodes it names."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((each for each in lines if not each.startswith("{{")), "unknown error")
    return line.split("}} ", 1)[-1].split(" [Op:", 1)[0].rstrip(".") + "."


def _reseed(seed: int) -> None:
    """What `tf.random.set_seed` does to operations that are made from now on, and no more.

    The function itself also drops all kernels that TensorFlow has cached, which makes the next
    step instantiate its whole graph again: tens of milliseconds at each slice.
    """
    from tensorflow.python.eager import context as eager

    context = eager.context()
    if not hasattr(context, "_seed") or not hasattr(context, "_rng"):
        tf.random.set_seed(seed)
        return
    context._seed = seed
    context._rng = random.Random(seed)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = True
    return options


def _component(leaf: Any) -> Component:
    if isinstance(leaf, tf.Tensor) and leaf.dtype != tf.string and leaf.dtype != tf.variant:
        return leaf.numpy()
    return leaf


def _length(component: Component) -> int:
    if isinstance(component, tf.SparseTensor):
        return int(component.dense_shape[0])
    if isinstance(component, tf.RaggedTensor):
        return int(component.nrows())
    return int(component.shape[0])


def _cut(component: Component, begin: int, end: int) -> Component:
    if isinstance(component, tf.SparseTensor):
        rest = component.dense_shape[1:]
        start = tf.concat([[tf.cast(begin, tf.int64)], tf.zeros_like(rest)], 0)
        size = tf.concat([[tf.cast(end - begin, tf.int64)], rest], 0)
        return tf.sparse.slice(component, start, size)
    return component[begin:end]


def _joined(pieces: Sequence[_Piece]) -> tuple[Component, ...]:
    """The pieces' elements, one behind the other."""
    parts = [
        tuple(
            _cut(component, piece.elements.start, piece.elements.stop)
            for component in piece.block.components
        )
        for piece in pieces
        if piece.block is not None and len(piece.elements)
    ]
    return tuple(_concatenated(column) for column in zip(*parts, strict=True))


def _concatenated(column: Sequence[Component]) -> Component:
    if len(column) == 1:
        return column[0]
    if isinstance(column[0], np.ndarray):
        return np.concatenate(column)
    if isinstance(column[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(column), expand_nonconcat_dims=True)
    return tf.concat(list(column), 0)
