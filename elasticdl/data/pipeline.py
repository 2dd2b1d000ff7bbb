"""Slices → blocks of elements, through the user's input function, the same ones each time."""

import contextlib
import itertools
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.data.ops import dataset_ops
from tensorflow.python.data.util import random_seed as data_seeds
from tensorflow.python.eager import context as eager_context
from tensorflow.python.framework import op_def_registry

from elasticdl.core import seeds, streams
from elasticdl.core.progress import Used
from elasticdl.data import permuted, sources
from elasticdl.errors import ElasticDLError, UserCodeError, UserError

_BLOCK_BYTES = 1 << 20
_MOST_BLOCK = 256
_GROWTH = 4
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


Part = tuple[streams.Slice, Block, range]
"""Some elements of a block of a slice."""


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


@dataclass(frozen=True)
class Step:
    """One slice on a walk, and how many of its elements to leave out."""

    epoch: int
    index: int
    slice: streams.Slice
    skip: int


Walk = Generator[tuple[Step, Block], None, None]


class Opener:
    """Slices → blocks of elements, the same ones each time.

    The user's input function is traced once, with the slice's records and seed as inputs, and a
    walk runs through that one pipeline. Where that does not give what the function itself gives
    (it iterates over its dataset, or draws random numbers other than a shuffle's), the function
    is called anew for each slice, which costs some tens of milliseconds.

    Args:
        files: the paths of the data set's files.
        create_dataset: the user's input function, from a dataset of serialized records.
        seed: of the job.

    Attributes:
        block: elements in a block, once `sample` was called.
    """

    # Seeds of a pipeline's operations are drawn while it is built, one pipeline at a time.
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
        self.block = 0
        self._permuted: permuted.Permuted | None = None
        # Number of a walk → a dataset of the blocks of that walk, (tag, block).
        self._traced: Any = None
        self._walks: dict[int, _Passed] = {}
        self._numbers = itertools.count()

    def sample(self, plan: streams.Plan) -> tuple[Any, Block]:
        """The type of a batch of any size, and a block of the first slice that has elements.

        To be called once, before anything else.

        Raises:
            CorruptData, UserError, UserCodeError
        """
        for number in range(plan.slices):
            slice_ = plan.slice(number)
            elements = self._called(slice_, 0, self._records(slice_))
            self.block = block_elements(elements.element_spec)
            block = next(self.blocks(slice_, 0), None)
            if block is not None:
                self._trace(slice_, block)
                return elements.batch(1).element_spec, block
        raise UserError(
            "create_dataset: expected elements; got none from all records. Look at its filters."
        )

    def blocks(self, slice_: streams.Slice, epoch: int, skip: int = 0) -> Iterator[Block]:
        """The slice's elements but the first `skip`, in blocks.

        Raises:
            CorruptData: a record file is damaged.
            UserError, UserCodeError: the user's input function fails on these records.
        """
        walk = self.walk(iter([Step(epoch, 0, slice_, skip)]), ahead=False)
        for _, block in walk if self._permuted is None else _one_ahead(walk):
            yield block

    def walk(self, steps: Iterator[Step], *, first: int = 0, ahead: bool = True) -> Walk:
        """The blocks of one slice after another.

        Args:
            first: the most elements of the first block, where small blocks come sooner; 0: `block`.
            ahead: whether to go on reading while nobody asks.

        Raises:
            CorruptData, UserError, UserCodeError: as `blocks`.
        """
        if self._permuted is not None:
            yield from self._chosen(self._permuted, steps, first or self.block)
            return
        together = self._traced is not None and ahead
        for some in [steps] if together else (iter([step]) for step in steps):
            yield from self._run(some)

    def _chosen(self, permuted: permuted.Permuted, steps: Iterator[Step], size: int) -> Walk:
        """Blocks that begin with `size` elements and grow."""
        for step in steps:
            records, seed = self._records(step.slice), self.seed_of(step.slice, step.epoch)
            try:
                places = permuted.places(len(records), seed)
                first = step.skip
                while first < len(records):
                    batch = permuted.elements(records[places[first : first + size]], seed)
                    components = tuple(_component(leaf) for leaf in tf.nest.flatten(batch))
                    count = _length(components[0])
                    yield step, Block(components, count, first)
                    first += count
                    size = min(_GROWTH * size, self.block)
            except tf.errors.OpError as error:
                raise self._problem(step.slice, error) from error

    def _run(self, steps: Iterator[Step]) -> Iterator[tuple[Step, Block]]:
        """One pipeline through all of `steps`, or, if there is no traced function, one step."""
        passed = _Passed(self, steps)
        if self._traced is None:
            step = next(passed.steps)
            elements = self._called(step.slice, step.epoch, self._records(step.slice))
            batches = self._batches(elements, step.skip, 0).prefetch(1).with_options(_options())
            yield from self._drained(passed, iter(batches))
            return
        walk = next(self._numbers)
        self._walks[walk] = passed
        try:
            yield from self._drained(passed, iter(self._traced(tf.constant(walk, tf.int64))))
        finally:
            del self._walks[walk]

    def _drained(self, passed: "_Passed", iterator: Any) -> Iterator[tuple[Step, Block]]:
        """The blocks that a pipeline's iterator gives, each with the step that it belongs to."""
        first = tag = -1
        while True:
            try:
                number, batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                if passed.failure is not None:
                    raise passed.failure from None
                raise self._problem(passed.last.slice, error) from error
            if int(number) != tag:
                tag = int(number)
                step = passed.at(tag)
                first = step.skip
            components = tuple(_component(leaf) for leaf in tf.nest.flatten(batch))
            count = _length(components[0])
            yield step, Block(components, count, first)
            first += count
            if first > _ENDLESS * (step.slice.records + 1000):
                raise UserError(
                    f"create_dataset: expected an end; got more than {first} elements from "
                    f"{step.slice.records} records. Remove repeat(): --epochs says how often."
                )

    def joined(self, parts: Sequence[Part]) -> tuple[Component, ...]:
        """The elements of parts of blocks as TensorFlow takes them, one behind the other.

        Raises:
            UserError: their shapes differ.
        """
        columns = [
            [_cut(component, some.start, some.stop) for component in block.components]
            for _, block, some in parts
            if len(some)
        ]
        try:
            return tuple(tensors([_concatenated(c) for c in zip(*columns, strict=True)]))
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            where = "; ".join(dict.fromkeys(self.where(slice_) for slice_, _, _ in parts))
            shapes = _shapes_of([block for _, block, _ in parts])
            raise _unequal(f"got {shapes}", where) from error

    def where(self, slice_: streams.Slice) -> str:
        """The slice in words."""
        return f"{self.files[slice_.file]}, records {slice_.start} to {slice_.end - 1}"

    def seed_of(self, slice_: streams.Slice, epoch: int) -> int:
        """What the pipeline's random numbers for this slice and epoch come from."""
        return seeds.seed("slice", self._seed, epoch, slice_.file, slice_.start)

    def _records(self, slice_: streams.Slice) -> NDArray[np.object_]:
        records = sources.read(self.files[slice_.file], slice_.start, slice_.end)
        array = np.empty(len(records), object)
        array[:] = records
        return array

    def _called(
        self, slice_: streams.Slice, epoch: int, records: NDArray[np.object_]
    ) -> tf.data.Dataset:
        """What the user's function returns for one slice."""
        seed = self.seed_of(slice_, epoch)
        with Opener._building, _seeds(seed, tf.constant(seed, tf.int64)):
            return _InOrder(
                self._create_dataset(
                    tf.data.Dataset.from_tensor_slices(tf.constant(records, tf.string))
                )
            )

    def _batches(self, elements: tf.data.Dataset, skip: Any, tag: Any) -> tf.data.Dataset:
        """Blocks of the elements but the first `skip`, each behind the number `tag`."""
        blocks = elements.skip(skip).batch(self.block)
        tags = tf.data.Dataset.from_tensors(tf.convert_to_tensor(tag, tf.int64)).repeat()
        return tf.data.Dataset.zip((tags, blocks))

    def _trace(self, slice_: streams.Slice, block: Block) -> None:
        """Traces the user's function, if that gives the same elements as calling it."""

        drew = False

        @contextlib.contextmanager
        def seeded(seed: Any) -> Iterator[None]:
            # As outside of a function: AutoGraph rewrites the `if`s of what is mapped.
            status = ag_ctx.ControlStatusCtx(ag_ctx.Status.UNSPECIFIED)
            with _seeds(0, seed), status:
                yield

        def pipeline(records: Any, seed: Any, skip: Any, tag: Any) -> tf.data.Dataset:
            nonlocal drew
            with seeded(seed):
                before = _python_random()
                elements = self._create_dataset(tf.data.Dataset.from_tensor_slices(records))
                drew = _python_random() != before
            return self._batches(elements, skip, tag)

        # What a user's function cannot do in a graph may raise anything; it goes on outside of one,
        # where a damaged file or a fault of ours raises again.
        with contextlib.suppress(Exception):
            with Opener._building:
                traced = tf.function(pipeline, autograph=False).get_concrete_function(
                    *_SLICE_INPUTS
                )
            if drew or not _repeats(traced.graph):
                return
            with contextlib.suppress(Exception):
                with Opener._building:
                    self._permuted = permuted.trace(self._create_dataset, seeded)
                if self._permuted is not None and self._begins_with(slice_, block):
                    return
            self._permuted = None
            self._traced = self._walking(traced)
            if self._begins_with(slice_, block):
                return
        self._traced = None

    def _begins_with(self, slice_: streams.Slice, block: Block) -> bool:
        again = next(self.blocks(slice_, 0), None)
        return again is not None and _same(block, again)

    def _walking(self, pipeline: Any) -> Any:
        """The function from a walk's number to its dataset: built once, it opens in no time.

        Args:
            pipeline: traced, from the inputs of a slice to the dataset of its blocks.
        """
        plain = tf.autograph.experimental.do_not_convert

        def inputs(walk: NDArray[np.int64]) -> tuple[NDArray[np.object_], int, int, int, bool]:
            return self._walks[int(walk)].inputs()

        def fed(walk: tf.Tensor) -> list[tf.Tensor]:
            values = tf.numpy_function(inputs, [walk], [*(s.dtype for s in _SLICE_INPUTS), tf.bool])
            for value, spec in zip(values, [*_SLICE_INPUTS, tf.TensorSpec([])], strict=True):
                value.set_shape(spec.shape)
            return list(values)

        def dataset(walk: tf.Tensor) -> tf.data.Dataset:
            steps = tf.data.Dataset.range(tf.int64.max).map(plain(lambda _: fed(walk)))
            present = steps.take_while(plain(lambda *values: values[-1]))
            blocks = present.flat_map(plain(lambda *values: pipeline(*values[:-1])))
            return blocks.prefetch(1).with_options(_options())

        with Opener._building:
            function = tf.function(dataset, autograph=False)
            return function.get_concrete_function(tf.TensorSpec([], tf.int64))

    def _problem(self, slice_: streams.Slice, error: Exception) -> ElasticDLError:
        text = str(getattr(error, "message", error)).rpartition(_UNKNOWN_PLACE)[2].strip()
        if "Cannot batch tensors with different shapes" in text:
            return _unequal(first_line(text).rstrip("."), self.where(slice_))
        # Without Python in it, the text names nodes of a graph, which say nothing to its author.
        trace = text if "Traceback (most recent call last)" in text else ""
        where = self.where(slice_)
        return UserCodeError(f"create_dataset: {first_line(text)} ({where})", trace, (where,))


def _unequal(problem: str, where: str) -> UserError:
    return UserError(
        f"create_dataset: expected elements of one shape; {problem} ({where}). Pad them, or yield "
        "ragged tensors."
    )


_SLICE_INPUTS = (
    tf.TensorSpec([None], tf.string),  # records
    tf.TensorSpec([], tf.int64),  # seed
    tf.TensorSpec([], tf.int64),  # elements to skip
    tf.TensorSpec([], tf.int64),  # the number by which its blocks name the slice
)


class _Passed:
    """Feeds steps to a pipeline, which runs ahead, and knows them by number when blocks come."""

    def __init__(self, opener: Opener, steps: Iterator[Step]) -> None:
        self.failure: BaseException | None = None
        self.steps = self._noted(steps)
        self._opener = opener
        self._open: deque[tuple[int, Step]] = deque()
        self._count = 0

    @property
    def last(self) -> Step:
        return self._open[-1][1]

    def inputs(self) -> tuple[NDArray[np.object_], int, int, int, bool]:
        """Records, seed, elements to skip and number of the next step, and whether there is one."""
        try:
            step = next(self.steps, None)
            if step is None:
                return np.empty(0, object), 0, 0, 0, False
            records = self._opener._records(step.slice)
            seed = self._opener.seed_of(step.slice, step.epoch)
            return records, seed, step.skip, self._count - 1, True
        # TensorFlow passes on no more than the text of what Python code raises.
        except Exception as error:
            self.failure = error
            raise

    def at(self, number: int) -> Step:
        while self._open[0][0] != number:
            self._open.popleft()
        return self._open[0][1]

    def _noted(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            self._open.append((self._count, step))
            self._count += 1
            yield step


def _one_ahead(walk: Walk) -> Walk:
    """The same, of which the next block is made while the last one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        try:
            coming = thread.submit(next, walk, None)
            while (found := coming.result()) is not None:
                coming = thread.submit(next, walk, None)
                yield found
        finally:
            thread.shutdown()
            walk.close()


def part_of(batch: Batch, begin: int, end: int) -> tuple[Component, ...]:
    """The components of the elements [begin, end) of a batch."""
    return tuple(_cut(component, begin, end) for component in batch.components)


def tensors(components: Sequence[Component]) -> list[Any]:
    """The components as TensorFlow takes them."""
    return [tf.convert_to_tensor(c) if isinstance(c, np.ndarray) else c for c in components]


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
    """What a message of TensorFlow says, without the graph nodes it names and their places."""
    said = _NODES.sub("", text).strip()
    if _DEFINED in said:
        said = said.rpartition("\n\n")[2]
    return _WRAPPING.sub("", said).strip().split("\n", 1)[0].rstrip(".") + "."


_DEFINED = "Detected at node"
_UNKNOWN_PLACE = "<stack traces unavailable>\n"
_NODES = re.compile(r"(\s*\[\[\{\{.*|\s*\[Op:\w+\].*)", re.DOTALL)
_WRAPPING = re.compile(
    r"^(\{\{[^}]*\}\}\s*)*"
    r"(Error in user-defined function passed to \S+ transformation with iterator: \S+: )*"
)


@contextlib.contextmanager
def _seeds(plain: int, shuffles: tf.Tensor) -> Iterator[None]:
    """Decides the seeds of operations that are made inside, and what Python's and NumPy's global
    generators draw inside.

    What `tf.random.set_seed` would do, and more: a shuffle's seed can be a tensor, so that one
    traced pipeline serves all slices. `set_seed` itself also drops all kernels that TensorFlow
    has cached, which makes the next training step instantiate its whole graph again.

    Args:
        plain: seed of random operations other than tf.data's.
        shuffles: int64 [], seed of tf.data's; each of them adds the seed that it was given, or
            its own number.
    """
    context = eager_context.context()
    # Where no seed was ever set, there is no generator yet.
    before = context._seed, getattr(context, "_rng", None)
    python, numpy = random.getstate(), np.random.get_state()
    given = data_seeds.get_seed
    numbers = itertools.count(1)  # a pair of zeros would mean a seed from nowhere

    def get_seed(seed: Any) -> Any:
        return shuffles, tf.cast(next(numbers) if seed is None else seed, tf.int64)

    context._seed, context._rng = plain, random.Random(plain)
    random.seed(plain)
    np.random.seed(plain)
    data_seeds.get_seed = get_seed
    try:
        yield
    finally:
        data_seeds.get_seed = given
        np.random.set_state(numpy)
        random.setstate(python)
        context._seed, context._rng = before


def _python_random() -> tuple[Any, ...]:
    """Where Python's and NumPy's global generators stand."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


class _InOrder(dataset_ops.UnaryUnchangedStructureDataset):  # type: ignore[misc]
    """The same dataset, each time with the same elements in the same order, also where parallel
    calls draw random numbers or have `deterministic=False`.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        variant = tf.raw_ops.OptimizeDatasetV2(
            input_dataset=dataset._variant_tensor,
            optimizations_enabled=["make_deterministic"],
            optimizations_disabled=[],
            optimizations_default=[],
            **dataset._flat_structure,
        )
        self._input_dataset = dataset
        super().__init__(dataset, variant)


def _repeats(graph: Any) -> bool:
    """Whether the graph gives the same each time: nothing in it keeps something from one slice to
    the next, or is allowed to give elements in another order.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    for node in nodes:
        known = op_def_registry.get(node.op)
        if known is not None and known.is_stateful and not _HARMLESS.fullmatch(node.op):
            return False
        if node.attr["deterministic"].s == b"false":
            return False
    return True


# Stateful by their definition, but not in what a slice's elements are.
_HARMLESS = re.compile(
    r".*Dataset(V\d)?|DummySeedGenerator|DummyMemoryCache|(Eager)?PyFunc|LookupTable.*|.*HashTable.*|Print.*|Assert"
    r"|VarHandleOp|ReadVariableOp|(Stateful)?PartitionedCall|If|While|Placeholder"
)


def _same(one: Block, other: Block) -> bool:
    if one.elements != other.elements or len(one.components) != len(other.components):
        return False
    for a, b in zip(one.components, other.components, strict=True):
        for x, y in zip(
            tf.nest.flatten(a, expand_composites=True),
            tf.nest.flatten(b, expand_composites=True),
            strict=True,
        ):
            if np.asarray(x).tobytes() != np.asarray(y).tobytes() and not np.array_equal(x, y):
                return False
    return True


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
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


def _shapes_of(blocks: Sequence[Block]) -> str:
    """The shapes of the blocks' elements, without those that are the same in all."""
    columns = zip(*([str(list(c.shape[1:])) for c in b.components] for b in blocks), strict=True)
    return "; ".join(" and ".join(dict.fromkeys(c)) for c in columns if len(set(c)) > 1)


def _concatenated(column: Sequence[Component]) -> Component:
    if len(column) == 1:
        return column[0]
    if isinstance(column[0], np.ndarray):
        return np.concatenate(column)
    if isinstance(column[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(column), expand_nonconcat_dims=True)
    return tf.concat(list(column), 0)
