"""Keras on TensorFlow: the training state, and the traced functions that compute with it."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
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

# Bits that an exact sum may use of a float64's 53.
_EXACT_BITS = 52

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


class Replica:
    """A worker's copy of the training state: weights, optimizer slots, non-trainable variables.

    Args:
        definition: the user's model and what belongs to it.
        sample: elements of the data.
        seed: of the job.
        reproducible: compute each stream by itself and sum exactly.
        tail: floats of room that `gradients` leaves at its end.
        parallelism: streams computed at the same time, if `reproducible`.

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
    ) -> None:
        self.definition = definition
        self.model = definition.model
        self.optimizer = definition.optimizer
        self._sample = sample
        self._seed = seed
        self._reproducible = reproducible
        self._tail = tail
        self._parallelism = parallelism
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
        return sum(math.prod(v.shape) * _width(v) for v in self.model.variables)

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
        traced = tf.function(
            self._streams_gradients if self._reproducible else self._gradients,
            autograph=False,
            input_signature=[
                [*self._specs],
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([None], tf.int64),
            ],
        )
        self._gradient_function = traced.get_concrete_function()
        assert self._layout is not None
        self.layout: Layout = self._layout
        if self._reproducible:
            self._refuse_raw_random(self._gradient_function.graph)
            # One quantum for each tensor, and one for each metric state and the loss.
            fields = [*self.layout.gradients, *self.layout.states]
            fields += [f for each in self.layout.metrics.values() for f in each]
            sizes = [f.end - f.begin for f in fields] + [1]
            self._sizes: NDArray[np.int64] = np.asarray(sizes)
            self._begins: NDArray[np.int64] = np.cumsum(self._sizes) - self._sizes
            self.maxima_length: int = len(sizes)
        kind = tf.float64 if self._reproducible else tf.float32
        self._apply_function: Any = tf.function(
            self._apply,
            autograph=False,
            input_signature=[
                tf.TensorSpec([self.layout.length + self._tail], kind),
                tf.TensorSpec([], kind),
            ],
        ).get_concrete_function()
        if not self._reproducible:
            self._step_function: Any = tf.function(
                self._step,
                autograph=False,
                input_signature=[
                    [*self._specs],
                    tf.TensorSpec([None], tf.int64),
                    tf.TensorSpec([None], tf.int64),
                ],
            ).get_concrete_function()

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
        self, leaves: Sequence[Any], seed: tf.Tensor, trainable: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], Layout]:
        """Gradient sums, states, metrics and loss sum over some elements, as flat pieces."""
        element = tf.nest.pack_sequence_as(self._sample.specs, list(leaves))
        features, labels, weights = self.definition.unpack(element, modes.Mode.TRAINING)
        count = tf.cast(_batch_size(leaves[0]), tf.float32)
        others = self._other_values(seed)
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
            gradients = [g if g is None else tf.cast(g, tf.float32) * count for g in gradients]
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
    ) -> tuple[list[tf.Tensor], Layout]:
        pieces: list[tf.Tensor] = []
        layout = Layout([], [], [], [], {}, 0)

        def add(tensor: Any) -> Field:
            tensor = tf.cast(tf.convert_to_tensor(tensor), tf.float32)
            shape = tuple(tensor.shape.as_list())
            size = int(np.prod(shape, dtype=np.int64))
            pieces.append(tf.reshape(tensor, [size]))
            layout.length += size
            return Field(layout.length - size, layout.length, shape)

        for index, gradient in enumerate(gradients):
            if gradient is not None:
                layout.trained.append(index)
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

    def _other_values(self, seed: tf.Tensor) -> list[tf.Tensor]:
        """The non-trainable variables; a random layer's state is drawn from the step's seed."""
        return [
            tf.cast(tf.stack([seed, tf.constant(index, tf.int64)]), variable.dtype)
            if _is_seed(variable)
            else tf.convert_to_tensor(variable.value)
            for index, variable in enumerate(self._others)
        ]

    def _trainable_values(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(variable.value) for variable in self._trainable]

    def _gradients(self, leaves: Sequence[Any], counts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """All elements as one batch: float32 [length + tail]."""
        del counts
        pieces, self._layout = self._one(leaves, seed[0], self._trainable_values())
        return tf.concat([*pieces, tf.zeros([self._tail])], 0)

    def _streams_gradients(
        self, leaves: Sequence[Any], counts: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Each stream's elements as one batch: float32 [streams, length]."""
        ends = tf.cumsum(counts)
        trainable = self._trainable_values()

        def one(stream: tf.Tensor) -> tf.Tensor:
            begin, end = ends[stream] - counts[stream], ends[stream]
            part = [_rows(leaf, begin, end) for leaf in leaves]
            pieces, self._layout = self._one(part, seed[stream], trainable)
            return tf.concat(pieces, 0)

        return tf.map_fn(
            one,
            tf.range(tf.size(counts)),
            fn_output_signature=tf.TensorSpec([None], tf.float32),
            parallel_iterations=self._parallelism,
        )

    # ---- traced: apply -----------------------------------------------------------------------

    def _apply(self, flat: tf.Tensor, count: tf.Tensor) -> None:
        """Applies the sums over `count` elements."""
        layout = self.layout
        mean = tf.cast(flat / count, tf.float32)
        gradients = [tf.reshape(mean[f.begin : f.end], f.shape) for f in layout.gradients]
        states = [tf.reshape(mean[f.begin : f.end], f.shape) for f in layout.states]
        self._update(gradients, states)

    def _update(self, gradients: Sequence[tf.Tensor], states: Sequence[tf.Tensor]) -> None:
        trained = [self._trainable[index] for index in self.layout.trained]
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            typed = [tf.cast(g, v.dtype) for g, v in zip(gradients, trained, strict=True)]
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

    def _step(self, leaves: Sequence[Any], counts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Gradient and update in one: for a member that is alone. The tail of the layout."""
        count = tf.cast(tf.reduce_sum(counts), tf.float32)
        pieces, _ = self._one(leaves, seed[0], self._trainable_values())
        layout = self.layout
        shaped = [
            tf.reshape(piece / count, field.shape)
            for piece, field in zip(pieces, [*layout.gradients, *layout.states], strict=False)
        ]
        gradients, states = shaped[: len(layout.gradients)], shaped[len(layout.gradients) :]
        rest = pieces[len(shaped) :]
        tf.cond(
            tf.math.is_finite(rest[-1][0]),
            lambda: self._update(gradients, states),
            lambda: None,
        )
        return tf.concat(rest, 0)

    # ---- steps, from outside -----------------------------------------------------------------

    def alone(self, batch: pipeline.Batch, version: int) -> Outcome:
        """A whole step of a member without peers; not for `reproducible`.

        Raises:
            UserError, UserCodeError
        """
        with self._step_errors():
            rest = self._step_function(*self._inputs(batch, version)).numpy()
        return self.layout.outcome(rest, batch.elements, math.isfinite(float(rest[-1])))

    def gradients(self, batch: pipeline.Batch, version: int) -> tf.Tensor:
        """Sums over the batch: float32 [length + tail]; if `reproducible`, [streams, length]."""
        if not batch.elements:
            length = self.layout.length
            shape = [0, length] if self._reproducible else [length + self._tail]
            return tf.zeros(shape, tf.float32)
        with self._step_errors():
            return self._gradient_function(*self._inputs(batch, version))

    def maxima(self, gradients: NDArray[np.float32]) -> NDArray[np.float64]:
        """The largest absolute value of each tensor, over this member's streams.

        Args:
            gradients: float32 [streams, length].
        """
        if not len(gradients):
            return np.zeros(self.maxima_length)
        largest = np.max(np.abs(gradients), axis=0).astype(np.float64)
        largest[np.isnan(largest)] = np.inf
        return np.maximum.reduceat(largest, self._begins)

    def exact_sum(
        self, gradients: NDArray[np.float32], maxima: NDArray[np.float64], streams: int
    ) -> NDArray[np.float64]:
        """The sum over this member's streams, such that adding such sums is exact in any order:
        float64 [length + tail].

        Each number is rounded to a multiple of a power of two that is chosen so that `streams`
        numbers as large as the maximum still add up within a float64's 53 bits.

        Args:
            gradients: float32 [streams of this member, length].
            maxima: of all members together.
            streams: of the job.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            _, exponents = np.frexp(maxima)
            headroom = math.ceil(math.log2(max(streams, 2)))
            quanta = np.ldexp(1.0, exponents + headroom - _EXACT_BITS)
            quanta[~np.isfinite(maxima)] = np.nan
            quantum = np.repeat(quanta, self._sizes)
            total = np.zeros(self.layout.length + self._tail, np.float64)
            for row in gradients:
                total[: self.layout.length] += np.rint(row / quantum) * quantum
        return total

    def apply(self, flat: tf.Tensor, rest: NDArray[Any], elements: int) -> Outcome:
        """Commits the sums over all members.

        Nothing is applied where there are no elements, or the loss is not finite.

        Args:
            flat: [length + tail], sums over `elements` elements.
            rest: the same numbers from `layout.rest` on.
        """
        outcome = self.layout.outcome(rest, elements, applied=True)
        if not elements or not math.isfinite(outcome.loss_sum):
            return dataclasses.replace(outcome, applied=False)
        self._apply_function(flat, _constant(elements, flat.dtype))
        return outcome

    def losses_by_stream(self, batch: pipeline.Batch, version: int) -> dict[int, float]:
        """The loss sum of each stream's elements in the batch, to find where a bad one is from."""
        losses, begin = {}, 0
        for (stream, used), count in zip(batch.used.items(), batch.counts, strict=True):
            if count:
                part = pipeline.Batch(
                    pipeline.part_of(batch, begin, begin + count), (count,), {stream: used}, {}
                )
                flat = self.gradients(part, version).numpy().reshape(-1)
                losses[stream] = float(flat[self.layout.length - 1])
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
        hosts = [s for s, count in zip(batch.used, batch.counts, strict=True) if count]
        named = hosts if self._reproducible else hosts[:1]
        drawn = [
            seeds.seed("random layers", self._seed, stream, version) if self._draws else 0
            for stream in named
        ]
        leaves = pipeline.tensors(batch.components)
        return [leaves, _constant(tuple(counts), tf.int64), _constant(tuple(drawn), tf.int64)]

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

    def _variables(self) -> list[Any]:
        """All variables that make up the training state, in the same order in all replicas."""
        slots = self.optimizer.variables
        return [*self.model.variables, *(slots() if callable(slots) else slots)]

    def dump(self) -> bytes:
        """The training state, whole: the variables' bytes, one behind the other."""
        return b"".join(_numpy(variable).tobytes() for variable in self._variables())

    def restore(self, content: bytes) -> None:
        """Replaces the training state by one that `dump` returned in another replica."""
        variables = self._variables()
        sizes = [math.prod(variable.shape) * _width(variable) for variable in variables]
        if sum(sizes) != len(content):
            raise ValueError(f"expected a state of {sum(sizes)} bytes; got {len(content)}")
        begin = 0
        for variable, size in zip(variables, sizes, strict=True):
            part = np.frombuffer(content, _numpy_dtype(variable), size // _width(variable), begin)
            variable.assign(part.reshape(variable.shape))
            begin += size

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
def _constant(value: int | tuple[int, ...], dtype: tf.DType) -> tf.Tensor:
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


def _rows(leaf: Any, begin: tf.Tensor, end: tf.Tensor) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        rest = leaf.dense_shape[1:]
        start = tf.concat([[begin], tf.zeros_like(rest)], 0)
        return tf.sparse.slice(leaf, start, tf.concat([[end - begin], rest], 0))
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
