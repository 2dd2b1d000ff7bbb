"""What users give as metrics becomes states that add up over batches, and values from the sums."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.metrics import ALL_OBJECTS_DICT

from elasticdl.errors import UserError
from elasticdl.model import structures, usercode
from elasticdl.model.mode import Mode


@dataclass(frozen=True)
class _Batch:
    mode: Mode
    outputs: Any
    labels: Any
    predictions: Any
    weights: Any
    count: Any


@dataclass(frozen=True)
class _Kind:
    """How the states of one metric become its value; `metric` None: a mean over elements."""

    metric: Any = None
    initial: tuple[np.ndarray[Any, Any], ...] = ()


class Metrics:
    """The metrics of a model.

    Args:
        what: how messages name them.
        given: a function of `mode`, `outputs`, `labels` and `predictions` that returns a dict of
            scalar tensors or Keras metrics; or, if `as_compiled`, what `keras.Model.compile`
            takes, or a function that returns that. None: no metrics.
        output_names: the model's names for its outputs.
        weighted: whether Keras metrics receive the sample weights.
    """

    def __init__(
        self,
        what: str,
        given: Any,
        *,
        output_names: Sequence[str] = (),
        as_compiled: bool = False,
        weighted: bool = True,
    ) -> None:
        self._what = what
        self._given = given
        self._names = output_names
        self._as_compiled = as_compiled
        self._weighted = weighted
        self._function: Callable[..., Any] | None = None
        if callable(given) and not inspect.isclass(given) and not _is_metric(given):
            self._function = given
        self._kinds: dict[tuple[Mode, str], _Kind] = {}
        # Metrics given by name or class; made once, so that all traces share them.
        self._made: dict[tuple[str, int], Any] = {}

    @property
    def wants_predictions(self) -> bool:
        """Whether the outputs with `training=False` are asked for."""
        return self._function is not None and usercode.declares(self._function, "predictions")

    def states(
        self,
        mode: Mode,
        outputs: Any,
        labels: Any,
        predictions: Any,
        weights: Any,
        count: Any,
    ) -> dict[str, tuple[Any, ...]]:
        """The float32 states of one batch, which add up over batches; by name of the metric."""
        if self._given is None:
            return {}
        if predictions is None and mode is Mode.EVALUATION:
            predictions = outputs
        batch = _Batch(mode, outputs, labels, predictions, weights, tf.cast(count, tf.float32))
        found = {}
        with _stateless() as scope:
            for name, item, output in self._items(batch):
                if name in found:
                    raise UserError(
                        f"{self._what}: expected metrics with different names; got two named "
                        f"{name!r}."
                    )
                if _is_metric(item):
                    found[name] = self._of_metric(name, item, output, scope, batch)
                else:
                    value = self._scalar(name, item)
                    self._kinds[mode, name] = _Kind()
                    found[name] = (value * batch.count, batch.count)
        return found

    def has(self, mode: Mode, name: str) -> bool:
        """Whether `states` has given a metric of this name."""
        return (mode, name) in self._kinds

    def values(
        self, mode: Mode, sums: Mapping[str, Sequence[np.ndarray[Any, Any]]]
    ) -> dict[str, float | list[float]]:
        """The metrics whose states came to `sums`, in a process that has called `states`."""
        values: dict[str, float | list[float]] = {}
        for name, states in sums.items():
            kind = self._kinds[mode, name]
            if kind.metric is None:
                total, count = (float(np.asarray(state)) for state in states)
                values[name] = total / count if count else float("nan")
                continue
            variables = [
                (initial + np.reshape(state, initial.shape)).astype(variable.dtype)
                for variable, initial, state in zip(
                    kind.metric.variables, kind.initial, states, strict=True
                )
            ]
            mapping = list(zip(kind.metric.variables, variables, strict=True))
            with (
                usercode.running(f"{self._what}: result of {name}"),
                keras.StatelessScope(mapping),
            ):
                # Converted inside: a result may be the variable itself.
                result = kind.metric.result()
                if isinstance(result, Mapping):
                    values.update({f"{name}_{key}": _number(one) for key, one in result.items()})
                else:
                    values[name] = _number(result)
        return values

    def _items(self, batch: _Batch) -> Iterator[tuple[str, Any, structures.Output | None]]:
        """Name, metric or scalar, and the output that it is for (None: all together)."""
        given = self._given
        if self._function is not None:
            offered = {
                "mode": batch.mode,
                "outputs": batch.outputs,
                "labels": batch.labels,
                "predictions": batch.predictions,
                "sample_weight": batch.weights,
            }
            given = usercode.call(self._what, self._function, offered)
        if self._as_compiled and not _is_user_dict(given):
            yield from self._compiled_items(given, batch)
            return
        if not isinstance(given, Mapping):
            raise UserError(
                f"{self._what}: expected a dict of scalar tensors or Keras metrics; got "
                f"{_shown(given)}. Return {{}} for no metrics."
            )
        for name, item in given.items():
            if not isinstance(name, str):
                raise UserError(f"{self._what}: expected names of metrics; got the key {name!r}.")
            yield name, item, None

    def _compiled_items(
        self, given: Any, batch: _Batch
    ) -> Iterator[tuple[str, Any, structures.Output | None]]:
        """The metrics that `given` means to `keras.Model.compile`."""
        if given is None:
            return
        outputs = list(structures.outputs_of(batch.outputs, self._names))
        for output in outputs:
            several = len(outputs) > 1
            by_output = isinstance(given, Mapping) or (
                several and isinstance(given, list | tuple) and len(given) == len(outputs)
            )
            here = structures.part_for(self._what, given, output) if by_output else given
            for index, one in enumerate(here if isinstance(here, list | tuple) else [here]):
                if one is None:
                    continue
                metric = self._metric(one, output, batch, index)
                name = one if isinstance(one, str) else metric.name
                yield f"{output.name}_{name}" if several else name, metric, output

    def _metric(self, given: Any, output: structures.Output, batch: _Batch, index: int) -> Any:
        if _is_metric(given):
            return given
        key = (output.name, index)
        if key not in self._made:
            labels = structures.part_for("labels", batch.labels, output)
            self._made[key] = _metric_named(self._what, given, labels, output.value)
        return self._made[key]

    def _of_metric(
        self, name: str, metric: Any, output: structures.Output | None, scope: Any, batch: _Batch
    ) -> tuple[Any, ...]:
        if hasattr(type(metric), "merge_state"):
            raise UserError(
                f"{self._what}: expected metrics whose state adds up over batches; {name!r} is a "
                f"{type(metric).__name__}, which merges in another way. Return scalars instead."
            )
        if all(scope.get_current_value(variable) is None for variable in metric.variables):
            self._update(name, metric, output, batch)
        initial = _initial(metric)
        self._kinds[batch.mode, name] = _Kind(metric, initial)
        return tuple(
            _difference(scope.get_current_value(variable), start)
            for variable, start in zip(metric.variables, initial, strict=True)
        )

    def _update(
        self, name: str, metric: Any, output: structures.Output | None, batch: _Batch
    ) -> None:
        outputs, labels, weights = batch.outputs, batch.labels, batch.weights
        if output is not None:
            outputs = output.value
            labels = structures.part_for("labels", labels, output)
            weights = structures.part_for("sample weights", weights, output)
        what = f"{self._what}: {name}"
        parameters = [parameter.name for parameter in usercode.parameters(metric.update_state)]
        if parameters[:1] == ["values"]:
            raise UserError(
                f"{what}: expected a metric of labels and outputs, or one updated in the "
                f"function; got a {type(metric).__name__} without an update. Call its "
                "update_state, or return the scalar itself."
            )
        if isinstance(outputs, Mapping | list | tuple):
            raise UserError(
                f"{what}: expected a metric for one output; the model has several. Call "
                "update_state in the function, with the output that it is for."
            )
        if labels is None:
            raise UserError(f"{what}: expected labels; create_dataset gives none.")
        keywords = {}
        if weights is not None and self._weighted and "sample_weight" in parameters:
            keywords["sample_weight"] = weights
        with usercode.running(what):
            metric.update_state(labels, outputs, **keywords)

    def _scalar(self, name: str, item: Any) -> Any:
        problem = (
            f"{self._what}: metric {name!r}: expected a scalar tensor or a Keras metric; got "
            f"{_shown(item)}."
        )
        if isinstance(item, str | Mapping) or item is None or callable(item):
            raise UserError(problem)
        try:
            value = tf.convert_to_tensor(item)
        except (ValueError, TypeError) as error:
            raise UserError(problem) from error
        if value.shape.rank != 0 or not (
            value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool
        ):
            raise UserError(problem)
        return tf.cast(value, tf.float32)


def _is_metric(item: Any) -> bool:
    return isinstance(item, keras.metrics.Metric)


def _is_user_dict(given: Any) -> bool:
    """Whether a dict is of metrics by name, not what `compile` takes: metrics by output."""
    return isinstance(given, Mapping) and not any(
        isinstance(item, str | list | tuple) or inspect.isclass(item) or inspect.isfunction(item)
        for item in given.values()
    )


def _metric_named(what: str, given: Any, labels: Any, outputs: Any) -> Any:
    with usercode.running(what):
        if isinstance(given, str):
            if given.lower() in ("accuracy", "acc", "crossentropy", "ce"):
                task = structures.task_of(labels, outputs)
                last = "accuracy" if given.lower().startswith("acc") else "crossentropy"
                given = f"{task}_{last}"
            try:
                found = keras.metrics.get(given)
            except ValueError:
                known = [name for name in ALL_OBJECTS_DICT if name.islower()]
                raise UserError(
                    f"{what}: expected names of Keras's metrics; got {given!r}."
                    f"{usercode.nearest(given, known) or ' Use names such as accuracy or mae.'}"
                ) from None
        elif inspect.isclass(given) and issubclass(given, keras.metrics.Metric):
            found = given()
        elif callable(given):
            found = given
        else:
            raise UserError(
                f"{what}: expected Keras metrics, their names, or functions of labels and "
                f"outputs; got {_shown(given)}."
            )
        if not _is_metric(found):
            found = keras.metrics.MeanMetricWrapper(found, name=found.__name__)
    return found


@contextlib.contextmanager
def _stateless() -> Iterator[Any]:
    """A `keras.StatelessScope` in which metrics may be made, too.

    Keras would make their variables when the scope ends, or the next one does; inside a
    `tf.function` that fails. Unmade, they stand for their initial values, which is all we need.
    """
    waiting = list(global_state.get_global_attribute(_UNMADE) or [])
    try:
        with keras.StatelessScope(initialize_variables=False) as scope:
            yield scope
    finally:
        global_state.set_global_attribute(_UNMADE, waiting)


_UNMADE = "uninitialized_variables"


def _initial(metric: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """The values of the metric's variables after a reset, float64."""
    with tf.init_scope(), _stateless() as scope:
        metric.reset_state()
        values = [
            variable.value
            if scope.get_current_value(variable) is None
            else scope.get_current_value(variable)
            for variable in metric.variables
        ]
        return tuple(np.asarray(value).astype(np.float64) for value in values)


def _difference(value: Any, start: np.ndarray[Any, Any]) -> Any:
    if value is None:
        return tf.zeros(start.shape, tf.float32)
    value = tf.cast(value, tf.float32)
    return value - start.astype(np.float32) if start.any() else value


def _number(value: Any) -> float | list[float]:
    array = np.asarray(value).astype(np.float64)
    return float(array) if array.ndim == 0 else [float(entry) for entry in array.ravel()]


def _shown(item: Any) -> str:
    if isinstance(item, tf.Tensor):
        return f"a {item.dtype.name} tensor of shape {tuple(item.shape)}"
    return f"{item!r} of type {type(item).__name__}"
