"""Keras on TensorFlow: the training state, and the traced functions that compute with it."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from elasticdl.core import seeds
from elasticdl.data import pipeline
from elasticdl.errors import ElasticDLError, UserCodeError, UserError
from elasticdl.model import mode as modes
from elasticdl.model import spec, usercode
from elasticdl.worker import exact

# Streams in one traced function, if reproducible.
_GROUPS = (16, 8, 4, 2, 1)
_SMALL = 400  # operations

_LARGE_STATE = 64 << 20

_UNNAMED = re.compile(r"variable(_\d+)?")

_RANDOM_OPS = frozenset(
    {
        "RandomUniform",
        "RandomStandardNormal",
        "TruncatedNormal",
        "RandomUniformInt",
        "RandomShuffle",
        "RandomGamma",
        "RandomPoissonV2",
        "ParameterizedTruncatedNormal",
        "Multinomial",
    }
)


@dataclass(frozen=True)
class Sample:
    """Some elements of the data, from which models are built and functions are traced.

    Args:
        element: one batch of elements as the input function structures them.
        specs: the type of such a batch of any size, of the same structure.
    """

    element: Any
    specs: Any


@dataclass(frozen=True)
class Field:
    """One tensor's place in the flat buffer: entries [begin, end)."""

    begin: int
    end: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a committed step came to.

    Args:
        elements: how many it trained on.
        loss_sum: of the losses of all of them.
        metrics: state sums of the training metrics.
        applied: False where the loss was not finite and nothing was applied.
    """

    elements: int
    loss_sum: float
    metrics: dict[str, list[NDArray[np.float64]]]
    applied: bool


@dataclass
class Layout:
    """What the flat buffer of a step holds, in this order.

    Gradient sums of the trained variables, state sums (values of non-trainable variables times the
    element count), metric states, and the loss sum last.
    """

    gradients: list[Field]
    trained: list[int]  # indices into the model's trainable variables
    states: list[Field]
    stateful: list[int]  # indices into the model's non-trainable variables
    metrics: dict[str, list[Field]]
    length: int
    sparse: list[int]  # which gradients are summed up from rows, if reproducible

    @property
    def rest(self) -> int:
        """Where gradients and states end, and metric states and the loss sum begin."""
        return (self.states or self.gradients)[-1].end

    def outcome(self, rest: NDArray[Any], elements: int, applied: bool) -> Outcome:
        """What the numbers from `rest` to `length` say."""
        begin = self.rest
        metrics = {
            name: [
                np.asarray(rest[f.begin - begin : f.end - begin], np.float64).reshape(f.shape)
                for f in fields
            ]
            for name, fields in self.metrics.items()
        }
        return Outcome(elements, float(rest[self.length - begin - 1]), metrics, applied)


@dataclass(frozen=True)
class Summands:
    """What some streams give to a step, not yet added up.

    Args:
        rows: float32 […] of each stream: the tensors of the layout that are not sparse, side by
            side.
        values: float32 [entries, …] of each sparse tensor: what the streams add to its rows.
        indices: int64 [entries] of each: to which rows.
        entries: of each, the most that one stream has.
    """

    rows: list[NDArray[np.float32]]
    values: list[NDArray[np.float32]]
    indices: list[NDArray[np.int64]]
    entries: list[int]


# Of so many streams: rows, then values, indices and entries of sparse tensors.
_Grouped = tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]


@dataclass(frozen=True)
class _Updates:
    """Traced functions that change the training state; `step` not for `reproducible`."""

    apply: Any
    step: Any = None


class Replica:
    """A worker's copy of the training state: weights, optimizer slots, non-trainable variables.

    Args:
        definition: the user's model and what belongs to it.
        sample: elements of the data.
        seed: of the job.
        reproducible: compute each stream by itself and sum exactly.
        tail: floats of room that sums have at their end.
        parallelism: streams computed at the same time, if `reproducible`.
        shares: how many elements steps usually take from a stream. If `reproducible`, there are
            faster functions for these; all members must have the same.
        large_state: bytes of training state from which on the step after a snapshot has functions
            of its own, so that it need not copy what the snapshot holds.

    Raises:
        UserError, UserCodeError: model, data, loss and metrics do not fit together.
    """

    def __init__(
        self,
        definition: "spec.Definition",
        sample: Sample,
        *,
        seed: int = 0,
        reproducible: bool = False,
        tail: int = 0,
        parallelism: int = 1,
        shares: Collection[int] = (),
        large_state: int = _LARGE_STATE,
    ) -> None:
        self.definition = definition
        self.model = definition.model
        self.optimizer = definition.optimizer
        self._sample = sample
        self._seed = seed
        self._reproducible = reproducible
        self._tail = tail
        self._parallelism = parallelism
        self._large_state = large_state
        # A shape of one element would broadcast, and lose its axis where users squeeze.
        self._shares = sorted(share for share in set(shares) if share > 1)
        self._build()
        self._specs = tf.nest.flatten(sample.specs)
        self._trainable = list(self.model.trainable_variables)
        self._others = list(self.model.non_trainable_variables)
        self._draws = any(_is_seed(variable) for variable in self._others)

    # ---- building --------------------------------------------------------------------------

    def _build(self) -> None:
        features, _, _ = self.definition.unpack(self._sample.element, modes.Mode.TRAINING)
        self.definition.build(self.definition.inputs(self._sample.specs))
        with self._model_call(features):
            self.model(features, training=False)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the model's variables."""
        return sum(_bytes(variable) for variable in self.model.variables)

    def prepare_training(self) -> None:
        """Builds the optimizer and traces all that a step needs, on the sample's types.

        Raises:
            UserError, UserCodeError
        """
        if not self._trainable:
            raise UserError("model: expected weights to train; the model has none.")
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            self.optimizer.build(self._trainable)
        self._layout: Layout | None = None
        if self._reproducible:
            self._prepare_streams()
        else:
            self._gradient_function = tf.function(
                self._gradients,
                autograph=False,
                input_signature=[
                    [*self._specs],
                    tf.TensorSpec([None], tf.int64),
                    tf.TensorSpec([None], tf.int64),
                ],
            ).get_concrete_function()
        assert self._layout is not None
        self.layout: Layout = self._layout
        if self._reproducible:
            self._prepare_sums()
        self._in_place: _Updates = self._traced_updates(new_memory=False)
        keras_optimizer = isinstance(self.optimizer, keras.optimizers.Optimizer)
        self._in_new_memory: _Updates = (
            self._traced_updates(new_memory=True)
            if keras_optimizer and self.state_bytes >= self._large_state
            else self._in_place
        )
        if self._in_new_memory is not self._in_place:
            self._reserve()
        # TensorFlow makes a function ready when it is first called: not after the first snapshot.
        self._snapshot_taken: bool = True

    def _reserve(self) -> None:
        """Has the system give what the step after a snapshot needs, for it takes its time."""
        held = [tf.zeros(v.shape, v.dtype) for v in self.variables_by_name().values()]
        del held

    def _traced_updates(self, *, new_memory: bool) -> "_Updates":
        kind = tf.float64 if self._reproducible else tf.float32
        apply = tf.function(
            functools.partial(self._apply, new_memory),
            autograph=False,
            input_signature=[
                tf.TensorSpec([self.layout.length + self._tail], kind),
                tf.TensorSpec([], kind),
            ],
        ).get_concrete_function()
        if self._reproducible:
            return _Updates(apply)
        step = tf.function(
            functools.partial(self._step, new_memory),
            autograph=False,
            input_signature=[
                [*self._specs],
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([None], tf.int64),
            ],
        ).get_concrete_function()
        return _Updates(apply, step)

    def _next_updates(self) -> "_Updates":
        updates = self._in_new_memory if self._snapshot_taken else self._in_place
        self._snapshot_taken = False
        return updates

    # ---- traced: gradients -------------------------------------------------------------------

    def _forward(
        self,
        trainable: Sequence[tf.Tensor],
        others: Sequence[tf.Tensor],
        features: Any,
        *,
        training: bool,
    ) -> tuple[Any, list[Any], list[tf.Tensor]]:
        """The outputs, what becomes of `others`, and the layers' own losses."""
        # `stateless_call` would leave out what the model's `__call__` does: layers within a
        # subclassed model would not hear that this is training.
        values = [
            *zip(self._trainable, trainable, strict=True),
            *zip(self._others, others, strict=True),
        ]
        with (
            self._model_call(features),
            keras.StatelessScope(state_mapping=values, collect_losses=True) as scope,
        ):
            # Those of an earlier trace would count again.
            self.model._clear_losses()
            outputs = self.model(features, training=training)
            losses = self.model.losses
        return outputs, [scope.get_current_value(v) for v in self._others], losses

    def _one(
        self,
        leaves: Sequence[Any],
        seed: tf.Tensor,
        trainable: Sequence[tf.Tensor],
        steady: Sequence[tf.Tensor],
    ) -> tuple[list[Any], Layout]:
        """Gradient sums, states, metrics and loss sum over some elements, as flat pieces.

        Those of a layout's sparse gradients are IndexedSlices.
        """
        element = tf.nest.pack_sequence_as(self._sample.specs, list(leaves))
        features, labels, weights = self.definition.unpack(element, modes.Mode.TRAINING)
        count = tf.cast(_batch_size(leaves[0]), tf.float32)
        others = self._other_values(seed, steady)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            outputs, changed, losses = self._forward(trainable, others, features, training=True)
            loss_sum = self.definition.loss(outputs, labels, weights, count)
            for extra in losses:
                loss_sum += tf.cast(extra, tf.float32) * count
            # A mean leaves float16 the same room for gradients, however many elements there are.
            halves = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
            goal = loss_sum / count if halves else loss_sum
            if isinstance(self.optimizer, keras.optimizers.Optimizer):
                goal = self.optimizer.scale_loss(goal)
        gradients = tape.gradient(goal, trainable)
        if halves:
            gradients = [g if g is None else _scaled(g, count) for g in gradients]
        predictions = None
        if self.definition.wants_predictions:
            predictions, _, _ = self._forward(trainable, others, features, training=False)
        states = self.definition.metric_states(
            modes.Mode.TRAINING, outputs, labels, predictions, weights, count
        )
        return self._flat(gradients, others, changed, states, loss_sum, count)

    def _flat(
        self,
        gradients: Sequence[Any],
        others: Sequence[tf.Tensor],
        changed: Sequence[Any],
        metrics: Mapping[str, Sequence[tf.Tensor]],
        loss_sum: tf.Tensor,
        count: tf.Tensor,
    ) -> tuple[list[Any], Layout]:
        pieces: list[Any] = []
        layout = Layout([], [], [], [], {}, 0, [])
        # Which gradients are sparse is decided once: all functions have the same layout.
        known = self._layout.sparse if self._reproducible and self._layout else None

        def place(shape: Sequence[int]) -> Field:
            size = math.prod(shape)
            layout.length += size
            return Field(layout.length - size, layout.length, tuple(shape))

        def add(tensor: Any) -> Field:
            tensor = tf.cast(tf.convert_to_tensor(tensor), tf.float32)
            pieces.append(tf.reshape(tensor, [-1]))
            return place(tensor.shape.as_list())

        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            shape = tuple(self._trainable[index].shape)
            number = len(layout.trained)
            layout.trained.append(index)
            if number in known if known is not None else self._is_sparse(gradient, shape):
                layout.sparse.append(number)
                pieces.append(tf.cast(gradient, tf.float32))
                layout.gradients.append(place(shape))
            else:
                layout.gradients.append(add(gradient))
        if not layout.trained:
            raise UserError("loss: expected it to depend on the model's weights; it does not.")
        for index, (before, after) in enumerate(zip(others, changed, strict=True)):
            variable = self._others[index]
            if after is before or _is_seed(variable):
                continue
            layout.stateful.append(index)
            layout.states.append(add(tf.cast(after, tf.float32) * count))
        for name in sorted(metrics):
            layout.metrics[name] = [add(state) for state in metrics[name]]
        add(tf.reshape(loss_sum, []))
        return pieces, layout

    def _is_sparse(self, gradient: Any, shape: tuple[int, ...]) -> bool:
        """Whether a stream's gradient is small beside its variable, of this shape."""
        return (
            self._reproducible
            and isinstance(gradient, tf.IndexedSlices)
            and gradient.values.shape.is_fully_defined()
            and gradient.values.shape.num_elements() < math.prod(shape)
        )

    def _other_values(self, seed: tf.Tensor, steady: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The non-trainable variables; a random layer's state is drawn from the step's seed."""
        rest = iter(steady)
        return [
            tf.cast(tf.stack([seed, tf.constant(index, tf.int64)]), variable.dtype)
            if _is_seed(variable)
            else next(rest)
            for index, variable in enumerate(self._others)
        ]

    def _steady_values(self) -> list[tf.Tensor]:
        """The non-trainable variables but the states of random layers."""
        return [tf.convert_to_tensor(v.value) for v in self._others if not _is_seed(v)]

    def _trainable_values(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(variable.value) for variable in self._trainable]

    def _gradients(self, leaves: Sequence[Any], counts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """All elements as one batch: float32 [length + tail]."""
        del counts
        pieces, self._layout = self._one(
            leaves, seed[0], self._trainable_values(), self._steady_values()
        )
        return tf.concat([*pieces, tf.zeros([self._tail])], 0)

    # ---- traced: streams by themselves -------------------------------------------------------

    def _prepare_streams(self) -> None:
        """Traces the gradient of one stream: of each usual share of elements, and of any number."""
        self._group_functions: dict[tuple[int | None, int], Any] = {}
        kinds = [*self._shares, None]
        found = {kinds[0]: self._stream_function(kinds[0], {})}
        # A graph that holds a small one many times saves calls; of a large one it would be huge.
        small = len(found[kinds[0]].graph.get_operations()) <= _SMALL
        attributes = {} if small else {"_noinline": True}
        for share in kinds[small:]:
            found[share] = self._stream_function(share, attributes)
        self._stream_functions: dict[int | None, Any] = found

    def _stream_function(self, share: int | None, attributes: Mapping[str, Any]) -> Any:
        """Traced: a stream of `share` elements (None: of any number)."""
        function = tf.function(
            self._stream, autograph=False, experimental_attributes=dict(attributes)
        ).get_concrete_function(
            [_spec_of(spec, share) for spec in self._specs],
            tf.TensorSpec([], tf.int64),
            [tf.TensorSpec(v.shape, v.dtype) for v in self._trainable],
            [tf.TensorSpec(v.shape, v.dtype) for v in self._others if not _is_seed(v)],
        )
        self._refuse_raw_random(function.graph)
        return function

    def _prepare_sums(self) -> None:
        """One maximum for each tensor, and one for each metric state and the loss."""
        layout = self.layout
        self._sparse = [layout.gradients[place] for place in layout.sparse]
        dense = [*layout.gradients, *layout.states]
        dense += [f for each in layout.metrics.values() for f in each]
        dense.append(Field(layout.length - 1, layout.length, ()))
        dense = [field for field in dense if field not in self._sparse]
        self._tensors = exact.Tensors(
            [field.end - field.begin for field in dense],
            _GROUPS[0],
            ThreadPoolExecutor(self._parallelism - 1) if self._parallelism > 1 else None,
            self._parallelism,
        )
        self._dense = len(dense)
        self.maxima_length: int = len(dense) + 2 * len(self._sparse)
        usual = self._shares[0] if self._shares else None
        for streams in _GROUPS:
            self._group_function(usual, streams)

    def _stream(
        self,
        leaves: Sequence[Any],
        seed: tf.Tensor,
        trainable: Sequence[tf.Tensor],
        steady: Sequence[tf.Tensor],
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """Of one stream: the pieces that are not sparse; values and indices of those that are."""
        pieces, self._layout = self._one(leaves, seed, trainable, steady)
        sparse = [piece for piece in pieces if isinstance(piece, tf.IndexedSlices)]
        return (
            tf.concat([p for p in pieces if not isinstance(p, tf.IndexedSlices)], 0),
            [each.values for each in sparse],
            [tf.cast(each.indices, tf.int64) for each in sparse],
        )

    def _group_function(self, share: int | None, streams: int) -> Any:
        """Traced: so many streams, of `share` elements each (None: of any number)."""
        if (share, streams) not in self._group_functions:
            self._group_functions[share, streams] = tf.function(
                functools.partial(self._group, share, streams),
                autograph=False,
                input_signature=[
                    [*self._specs],
                    tf.TensorSpec([3 * streams], tf.int64),
                    tf.TensorSpec([], tf.bool),
                ],
            ).get_concrete_function()
        return self._group_functions[share, streams]

    def _group(
        self,
        share: int | None,
        streams: int,
        leaves: Sequence[Any],
        places: tf.Tensor,
        computes: tf.Tensor,
    ) -> _Grouped:
        """What becomes `Summands`.

        Args:
            places: int64 [3 * streams]: of each stream, where its elements begin and end, and its
                seed.
            computes: bool []: False where it is only to be made ready, see `rehearse`.
        """
        stream = self._stream_functions[share].structured_outputs
        row, values, indices = tf.nest.map_structure(
            lambda tensor: tf.zeros([0, *tensor.shape[1:]], tensor.dtype), stream
        )
        nothing = [row] * streams, values, indices, [tf.constant(0)] * len(indices)
        found: _Grouped = tf.cond(
            computes, lambda: self._grouped(share, streams, leaves, places), lambda: nothing
        )
        return found

    def _grouped(
        self, share: int | None, streams: int, leaves: Sequence[Any], places: tf.Tensor
    ) -> _Grouped:
        trainable, steady = self._trainable_values(), self._steady_values()
        numbers = tf.unstack(places)
        found: list[Any] = []
        for stream in range(streams):
            begin, end, seed = numbers[3 * stream : 3 * stream + 3]
            # More streams at a time would only need more memory at a time.
            before = [found[-self._parallelism][0]] if stream >= self._parallelism else []
            with tf.control_dependencies(before):
                part = [_rows(leaf, begin, end, share) for leaf in leaves]
                found.append(self._stream_functions[share](part, seed, trainable, steady))
        sparse = [list(zip(*each, strict=True)) for _, *each in found]
        columns = list(zip(*sparse, strict=True))
        return (
            [row for row, _, _ in found],
            [tf.concat([values for values, _ in column], 0) for column in columns],
            [tf.concat([indices for _, indices in column], 0) for column in columns],
            [tf.reduce_max([tf.size(indices) for _, indices in column]) for column in columns],
        )

    # ---- traced: apply -----------------------------------------------------------------------

    def _apply(self, new_memory: bool, flat: tf.Tensor, count: tf.Tensor) -> None:
        """Applies the sums over `count` elements; of none, nothing (see `rehearse`)."""

        def apply() -> None:
            layout = self.layout
            mean = tf.cast(flat / count, tf.float32)
            gradients = [tf.reshape(mean[f.begin : f.end], f.shape) for f in layout.gradients]
            states = [tf.reshape(mean[f.begin : f.end], f.shape) for f in layout.states]
            self._update(gradients, states, new_memory)

        tf.cond(count > 0, apply, lambda: None)

    def _update(
        self, gradients: Sequence[tf.Tensor], states: Sequence[tf.Tensor], new_memory: bool
    ) -> None:
        trained = [self._trainable[index] for index in self.layout.trained]
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            # Keras wants all of them from one graph; some casts change nothing.
            typed = [
                tf.identity(tf.cast(g, v.dtype)) for g, v in zip(gradients, trained, strict=True)
            ]
            with _into_new_memory(self.optimizer) if new_memory else contextlib.nullcontext():
                self.optimizer.apply(typed, trained)
        else:
            values = [variable.value for variable in trained]
            self.optimizer.apply_gradients(
                [(tf.cast(g, v.dtype), v) for g, v in zip(gradients, values, strict=True)]
            )
        for index, state in zip(self.layout.stateful, states, strict=True):
            variable = self._others[index]
            rounded = tf.round(state) if not tf.as_dtype(variable.dtype).is_floating else state
            variable.assign(tf.cast(rounded, variable.dtype))

    def _step(
        self, new_memory: bool, leaves: Sequence[Any], counts: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Gradient and update in one: for a member that is alone. The tail of the layout."""
        count = tf.cast(tf.reduce_sum(counts), tf.float32)
        pieces, _ = self._one(leaves, seed[0], self._trainable_values(), self._steady_values())
        layout = self.layout
        shaped = [
            tf.reshape(piece / count, field.shape)
            for piece, field in zip(pieces, [*layout.gradients, *layout.states], strict=False)
        ]
        gradients, states = shaped[: len(layout.gradients)], shaped[len(layout.gradients) :]
        rest = pieces[len(shaped) :]
        tf.cond(
            tf.math.is_finite(rest[-1][0]),
            lambda: self._update(gradients, states, new_memory),
            lambda: None,
        )
        return tf.concat(rest, 0)

    # ---- steps, from outside -----------------------------------------------------------------

    def rehearse(self, streams: Collection[int] = ()) -> None:
        """Has TensorFlow make ready what it otherwise does when a function is called first, which
        takes it longer than many steps. Computes with no elements, and changes nothing.

        Args:
            streams: how many there may be in a batch, if `reproducible`.
        """
        nowhere = tf.constant(0, tf.int64)
        sample = tf.nest.flatten(self._sample.element)
        empty = pipeline.tensors([_rows(leaf, nowhere, nowhere, None) for leaf in sample])
        kind = tf.float64 if self._reproducible else tf.float32
        nothing = tf.zeros([self.layout.length + self._tail], kind)
        with contextlib.suppress(tf.errors.OpError):
            # Some operations want elements; then the first step does it.
            if self._reproducible:
                usual = self._shares[0] if self._shares else None
                for size in {size for count in streams for size in _groups(count)}:
                    function = self._group_function(usual, size)
                    places = tf.zeros([3 * size], tf.int64)
                    function(empty, places, _constant(False, tf.bool))
            else:
                self._gradient_function(empty, *(tf.zeros([1], tf.int64),) * 2)
        for updates in {id(u): u for u in (self._in_place, self._in_new_memory)}.values():
            updates.apply(nothing, tf.zeros([], kind))

    def alone(self, batch: pipeline.Batch, version: int) -> Outcome:
        """A whole step of a member without peers; not for `reproducible`.

        Raises:
            UserError, UserCodeError
        """
        with self._step_errors():
            rest = self._next_updates().step(*self._inputs(batch, version)).numpy()
        return self.layout.outcome(rest, batch.elements, math.isfinite(float(rest[-1])))

    def gradients(self, batch: pipeline.Batch, version: int) -> tf.Tensor:
        """Sums over the batch: float32 [length + tail]; not for `reproducible`."""
        if not batch.elements:
            return tf.zeros([self.layout.length + self._tail], tf.float32)
        with self._step_errors():
            return self._gradient_function(*self._inputs(batch, version))

    def summands(self, batch: pipeline.Batch, version: int) -> list[Summands]:
        """What each stream gives, computed by itself; if `reproducible`.

        What a stream gives does not depend on the others in the batch.
        """
        kinds: dict[int | None, list[int]] = {}
        begin = 0
        for stream, count in zip(batch.used, batch.counts, strict=True):
            if count:
                place = (begin, begin + count, self._drawn(stream, version))
                kinds.setdefault(count if count in self._shares else None, []).extend(place)
                begin += count
        leaves = pipeline.tensors(batch.components)
        found = []
        with self._step_errors():
            for share, places in kinds.items():
                done = 0
                for streams in _groups(len(places) // 3):
                    given = _constant(tuple(places[done : done + 3 * streams]), tf.int64)
                    done += 3 * streams
                    rows, values, indices, entries = self._group_function(share, streams)(
                        leaves, given, _constant(True, tf.bool)
                    )
                    found.append(
                        Summands(
                            [np.asarray(each) for each in rows],
                            [np.asarray(each) for each in values],
                            [np.asarray(each) for each in indices],
                            [int(each) for each in entries],
                        )
                    )
        return found

    def maxima(self, summands: Sequence[Summands]) -> NDArray[np.float64]:
        """What `exact_sum` has to know of all summands: [maxima_length].

        The largest absolute values of the tensors, and the most entries that a stream has for the
        sparse ones; of several members' maxima, the largest ones count.
        """
        found = np.zeros(self.maxima_length)
        for each in summands:
            sparse = [exact.maximum(values) for values in each.values]
            mine = np.concatenate([self._tensors.maxima(each.rows), sparse, each.entries])
            np.maximum(found, mine, out=found)
        return found

    def exact_sum(
        self, summands: Sequence[Summands], maxima: NDArray[np.float64], streams: int
    ) -> NDArray[np.float64]:
        """Their sum, such that adding such sums is exact in any order: [length + tail].

        Args:
            maxima: of all members together.
            streams: of the job.
        """
        total = exact.aligned(self.layout.length + self._tail)
        largest, entries = np.split(maxima, [self._dense + len(self._sparse)])
        terms = np.concatenate([np.ones(self._dense), entries]) * streams
        offsets = exact.offsets(largest, terms)
        dense = np.zeros(self._tensors.length) if self._sparse else total[: self.layout.length]
        for each in summands:
            self._tensors.add(each.rows, offsets[: self._dense], dense)
            for field, values, indices, offset in zip(
                self._sparse, each.values, each.indices, offsets[self._dense :], strict=True
            ):
                exact.add_entries(values, indices, offset, total[field.begin : field.end])
        if self._sparse:
            done = filled = 0
            for field in [*self._sparse, Field(self.layout.length, self.layout.length, ())]:
                size = field.begin - filled
                total[filled : field.begin] = dense[done : done + size]
                done += size
                filled = field.end
        return total

    def apply(self, flat: Any, rest: NDArray[Any], elements: int) -> Outcome:
        """Commits the sums over all members.

        Nothing is applied where there are no elements, or the loss is not finite.

        Args:
            flat: [length + tail], sums over `elements` elements: a tensor, or an aligned array.
            rest: the same numbers from `layout.rest` on.
        """
        outcome = self.layout.outcome(rest, elements, applied=True)
        if not elements or not math.isfinite(outcome.loss_sum):
            return dataclasses.replace(outcome, applied=False)
        if isinstance(flat, np.ndarray):
            # No copy, which `tf.convert_to_tensor` would make.
            flat = tf.experimental.dlpack.from_dlpack(flat.__dlpack__())
        self._next_updates().apply(flat, _constant(elements, flat.dtype))
        return outcome

    def losses_by_stream(self, batch: pipeline.Batch, version: int) -> dict[int, float]:
        """The loss sum of each stream's elements in the batch, to find where a bad one is from."""
        losses, begin = {}, 0
        for (stream, used), count in zip(batch.used.items(), batch.counts, strict=True):
            if count:
                part = pipeline.Batch(
                    pipeline.part_of(batch, begin, begin + count), (count,), {stream: used}, {}
                )
                if self._reproducible:
                    loss = self.summands(part, version)[0].rows[0][-1]
                else:
                    loss = self.gradients(part, version)[self.layout.length - 1]
                losses[stream] = float(loss)
            begin += count
        return losses

    def learning_rate(self) -> float:
        """The optimizer's present learning rate; NaN where it does not say."""
        rate = getattr(self.optimizer, "learning_rate", None)
        if rate is None:
            rate = getattr(self.optimizer, "_learning_rate", None) or getattr(
                self.optimizer, "_lr", None
            )
        if callable(rate) and not isinstance(rate, tf.Variable):
            rate = rate()
        return float(rate) if rate is not None else math.nan

    def _inputs(self, batch: pipeline.Batch, version: int) -> list[Any]:
        """The arguments of the traced gradient functions."""
        counts = [count for count in batch.counts if count]
        first = next(s for s, count in zip(batch.used, batch.counts, strict=True) if count)
        leaves = pipeline.tensors(batch.components)
        return [
            leaves,
            _constant(tuple(counts), tf.int64),
            _constant((self._drawn(first, version),), tf.int64),
        ]

    def _drawn(self, stream: int, version: int) -> int:
        """The seed of a stream's random layers in a step; 0 where there are none."""
        return seeds.seed("random layers", self._seed, stream, version) if self._draws else 0

    # ---- evaluation and prediction -----------------------------------------------------------

    def prepare_evaluation(self, specs: Any) -> None:
        """Traces what evaluation needs, for batches of the type `specs`.

        Raises:
            UserError, UserCodeError
        """
        self._evaluation_specs = specs
        self._evaluation_layout: dict[str, list[Field]] = {}
        self._evaluation_function = tf.function(
            self._evaluate, autograph=False, input_signature=[[*tf.nest.flatten(specs)]]
        ).get_concrete_function()

    def _evaluate(self, leaves: Sequence[Any]) -> tf.Tensor:
        element = tf.nest.pack_sequence_as(self._evaluation_specs, list(leaves))
        features, labels, weights = self.definition.unpack(element, modes.Mode.EVALUATION)
        count = tf.cast(_batch_size(leaves[0]), tf.float32)
        outputs, _, losses = self._forward(
            self._trainable_values(),
            [tf.convert_to_tensor(variable.value) for variable in self._others],
            features,
            training=False,
        )
        loss_sum = self.definition.loss(outputs, labels, weights, count)
        for extra in losses:
            loss_sum += tf.cast(extra, tf.float32) * count
        states = self.definition.metric_states(
            modes.Mode.EVALUATION, outputs, labels, outputs, weights, count
        )
        pieces, at = [], 0
        for name in sorted(states):
            fields = []
            for state in states[name]:
                tensor = tf.cast(tf.convert_to_tensor(state), tf.float32)
                shape = tuple(tensor.shape.as_list())
                size = int(np.prod(shape, dtype=np.int64))
                pieces.append(tf.reshape(tensor, [size]))
                fields.append(Field(at, at + size, shape))
                at += size
            self._evaluation_layout[name] = fields
        pieces.append(tf.reshape(loss_sum, [1]))
        return tf.concat(pieces, 0)

    @property
    def evaluation_length(self) -> int:
        """Numbers in a vector of evaluation sums: metric states, then the loss sum."""
        return int(self._evaluation_function.structured_outputs.shape[0])

    def evaluation_sums(self, batch: pipeline.Batch) -> NDArray[np.float64]:
        """Metric states and loss sum over the batch: float64 [evaluation_length]."""
        leaves = pipeline.tensors(batch.components)
        with self._step_errors():
            sums = self._evaluation_function(leaves)
        return np.asarray(sums.numpy(), np.float64)

    def evaluation_metrics(
        self, sums: NDArray[np.float64], elements: int
    ) -> dict[str, float | list[float]]:
        """The metrics, and the mean loss, that the summed states amount to."""
        states = {
            name: [sums[f.begin : f.end].reshape(f.shape) for f in fields]
            for name, fields in self._evaluation_layout.items()
        }
        values = self.definition.metric_values(modes.Mode.EVALUATION, states)
        return {"loss": float(sums[-1] / elements), **values}

    def training_metrics(
        self, states: Mapping[str, Sequence[NDArray[np.float64]]]
    ) -> dict[str, float | list[float]]:
        """The training metrics that the summed states amount to."""
        return dict(self.definition.metric_values(modes.Mode.TRAINING, states))

    def prepare_prediction(self, specs: Any) -> None:
        """Traces what prediction needs, for batches of the type `specs`."""
        self._prediction_specs = specs
        self._prediction_function = tf.function(
            self._predict, autograph=False, input_signature=[[*tf.nest.flatten(specs)]]
        )
        self._prediction_function.get_concrete_function()

    def _predict(self, leaves: Sequence[Any]) -> Any:
        element = tf.nest.pack_sequence_as(self._prediction_specs, list(leaves))
        features, _, _ = self.definition.unpack(element, modes.Mode.PREDICTION)
        with self._model_call(features):
            return self.model(features, training=False)

    def predict(self, components: Sequence[pipeline.Component]) -> dict[str, NDArray[Any]]:
        """The model's outputs under their names, [n, ...] each."""
        with self._step_errors():
            outputs = self._prediction_function(list(components))
        return named_outputs(self.model, outputs)

    # ---- the state as a value ----------------------------------------------------------------

    def variables_by_name(self) -> dict[str, Any]:
        """All variables that make up the training state, in the same order in all replicas.

        model/<path> and optimizer/<path>; a name that several have gets `:1`, `:2`, … from the
        second on.
        """
        found: dict[str, Any] = {}
        for name, variable in [
            *((f"model/{variable.path}", variable) for variable in self.model.variables),
            *((f"optimizer/{name}", variable) for name, variable in self._slots()),
        ]:
            unique, number = name, 0
            while unique in found:
                number += 1
                unique = f"{name}:{number}"
            found[unique] = variable
        return found

    def _slots(self) -> list[tuple[str, Any]]:
        """The optimizer's variables under their paths."""
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            # Keras numbers variables without a name by what the process made before.
            return [
                ("variable" if _UNNAMED.fullmatch(variable.path) else variable.path, variable)
                for variable in self.optimizer.variables
            ]
        # Optimizers of tf.compat.v1 call a slot after the last part of its variable's path.
        paths = {}
        for variable in self._trainable:
            for kind in self.optimizer.get_slot_names():
                slot = self.optimizer.get_slot(variable.value, kind)
                if slot is not None:
                    paths[id(slot)] = f"{variable.path}/{kind}"
        return [(paths.get(id(v), v.name.split(":")[0]), v) for v in self.optimizer.variables()]

    def _variables(self) -> list[Any]:
        return list(self.variables_by_name().values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the training state."""
        return sum(_bytes(variable) for variable in self._variables())

    def dump_into(self, buffer: NDArray[np.uint8]) -> None:
        """Writes the training state, whole: the variables' bytes, one behind the other.

        Args:
            buffer: [state_bytes].
        """
        self._expect(len(buffer))
        begin = 0
        for variable in self._variables():
            content = _numpy(variable).reshape(-1).view(np.uint8)
            buffer[begin : begin + len(content)] = content
            begin += len(content)

    def dump(self) -> bytes:
        """The training state as `dump_into` writes it."""
        buffer = np.empty(self.state_bytes, np.uint8)
        self.dump_into(buffer)
        return buffer.tobytes()

    def restore(self, content: bytes | memoryview | NDArray[np.uint8]) -> None:
        """Replaces the training state by one that another replica dumped."""
        self._expect(len(content))
        begin = 0
        for variable in self._variables():
            count = math.prod(variable.shape)
            part = np.frombuffer(content, _numpy_dtype(variable), count, begin)
            variable.assign(part.reshape(variable.shape))
            begin += part.nbytes

    def _expect(self, length: int) -> None:
        if length != self.state_bytes:
            raise ValueError(f"expected a state of {self.state_bytes} bytes; got {length}")

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """The training state of this moment under the names of `variables_by_name`.

        Nothing is copied: TensorFlow gives a variable that changes new memory as long as arrays of
        a snapshot have the old one.
        """
        self._snapshot_taken = True
        pinned = {name: _numpy(each) for name, each in self.variables_by_name().items()}
        for array in pinned.values():
            array.flags.writeable = False
        return pinned

    # ---- errors ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _model_call(self, features: Any) -> Iterator[None]:
        """Turns what the model says of its input into an error for the user."""
        try:
            yield
        except ElasticDLError:
            raise
        except Exception as error:
            raise _model_error(error, features) from error

    @contextlib.contextmanager
    def _step_errors(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            text = str(error.message)
            raise UserCodeError(f"model: {pipeline.first_line(text)}", text) from error

    def _refuse_raw_random(self, graph: Any) -> None:
        """Raw random operations keep a state of their own in each process."""
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        found = sorted({node.op for node in nodes if node.op in _RANDOM_OPS})
        if found:
            raise UserError(
                f"model: --reproducible expects random layers of Keras or keras.random with a "
                f"SeedGenerator; the model uses {', '.join(found)} (tf.random), whose state cannot "
                "be set to a step's."
            )


def _model_error(error: Exception, features: Any) -> UserError:
    given = tf.nest.map_structure(lambda leaf: f"{leaf.dtype.name}{list(leaf.shape)}", features)
    message = (
        f"model: calling it with what create_dataset yields, {given}, failed: "
        f"{usercode.headline(error)}"
    )
    trace = usercode.trace(error)
    return UserCodeError(message, trace) if trace else UserError(message)


@contextlib.contextmanager
def _into_new_memory(optimizer: Any) -> Iterator[None]:
    """Inside, a Keras optimizer gives variables new tensors and does not change the old ones.

    That is as much to write as in place, where TensorFlow first copies what a snapshot holds. The
    numbers are the same.
    """

    def replacing(in_place: Any, operation: Any) -> Any:
        def replace(variable: Any, value: Any) -> None:
            if isinstance(value, tf.IndexedSlices):
                in_place(variable, value)
            else:
                old = variable.value if isinstance(variable, keras.Variable) else variable
                change = tf.cast(value, old.dtype)
                # What TensorFlow optimizes must not add up in another order across this.
                change = tf.compat.v1.placeholder_with_default(change, change.shape)
                old.assign(operation(old, change))

        return replace

    inner = getattr(optimizer, "inner_optimizer", None)
    both = [optimizer] if inner is None else [optimizer, inner]
    for each in both:
        each.assign_add = replacing(each.assign_add, tf.add)
        each.assign_sub = replacing(each.assign_sub, tf.subtract)
    try:
        yield
    finally:
        for each in both:
            del each.assign_add, each.assign_sub


def named_outputs(model: keras.Model, outputs: Any) -> dict[str, NDArray[Any]]:
    """The leaves of a model's outputs under their names.

    A dict's keys; else the names of a functional model's outputs, or of a sequential model's last
    layer; else output, output_1, …
    """
    if isinstance(outputs, Mapping):
        flat = {}
        for key, value in outputs.items():
            leaves = tf.nest.flatten(value)
            for place, leaf in enumerate(leaves):
                flat[str(key) if len(leaves) == 1 else f"{key}_{place}"] = leaf
    else:
        leaves = tf.nest.flatten(outputs)
        names = list(getattr(model, "output_names", None) or [])
        if isinstance(model, keras.Sequential):
            names = [model.layers[-1].name]
        if len(names) != len(leaves) or len(set(names)) != len(names):
            names = ["output" if n == 0 else f"output_{n}" for n in range(len(leaves))]
        flat = dict(zip(names, leaves, strict=True))
    return {name: _numpy(leaf) for name, leaf in flat.items()}


@functools.lru_cache(maxsize=1024)
def _constant(value: bool | int | tuple[int, ...], dtype: tf.DType) -> tf.Tensor:
    """Counts and seeds as tensors; most steps have the same ones as some step before."""
    return tf.constant(value, dtype)


def _is_seed(variable: Any) -> bool:
    return bool(variable.name == "seed_generator_state")


def _batch_size(leaf: Any) -> tf.Tensor:
    if isinstance(leaf, tf.SparseTensor):
        return leaf.dense_shape[0]
    if isinstance(leaf, tf.RaggedTensor):
        return leaf.nrows()
    return tf.shape(leaf)[0]


def _scaled(gradient: Any, factor: tf.Tensor) -> Any:
    """The gradient times a factor, in float32."""
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.cast(gradient.values, tf.float32) * factor
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.cast(gradient, tf.float32) * factor


def _groups(streams: int) -> list[int]:
    """So many streams, as sizes of groups."""
    sizes = []
    for size in _GROUPS:
        sizes += [size] * (streams // size)
        streams %= size
    return sizes


def _spec_of(spec: Any, elements: int | None) -> Any:
    """The type of a batch of so many elements, where types tell that."""
    if isinstance(spec, tf.TensorSpec) and elements is not None:
        return tf.TensorSpec([elements, *spec.shape[1:]], spec.dtype)
    return spec


def _rows(leaf: Any, begin: tf.Tensor, end: tf.Tensor, elements: int | None) -> Any:
    """The elements [begin, end), which are so many (None: any number)."""
    if isinstance(leaf, tf.SparseTensor):
        rest = leaf.dense_shape[1:]
        start = tf.concat([[begin], tf.zeros_like(rest)], 0)
        return tf.sparse.slice(leaf, start, tf.concat([[end - begin], rest], 0))
    if isinstance(leaf, tf.Tensor) and elements is not None:
        rest = [0] * (leaf.shape.rank - 1)
        return tf.slice(leaf, [begin, *rest], [elements, *(-1 for _ in rest)])
    return leaf[begin:end]


def _numpy(variable: Any) -> NDArray[Any]:
    if isinstance(variable, tf.RaggedTensor | tf.SparseTensor):
        dense = (
            variable.to_tensor()
            if isinstance(variable, tf.RaggedTensor)
            else tf.sparse.to_dense(variable)
        )
        return np.asarray(dense)
    value = getattr(variable, "value", variable)
    value = value() if callable(value) else value
    return np.asarray(tf.convert_to_tensor(value))


def _numpy_dtype(variable: Any) -> Any:
    return tf.as_dtype(variable.dtype).as_numpy_dtype


def _width(variable: Any) -> int:
    return int(np.dtype(_numpy_dtype(variable)).itemsize)


def _bytes(variable: Any) -> int:
    return int(math.prod(variable.shape)) * _width(variable)
