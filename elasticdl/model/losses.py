"""What users give as a loss becomes one sum over the elements of a batch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.losses import ALL_OBJECTS_DICT
from keras.src.losses.losses import LossFunctionWrapper

from elasticdl.errors import UserError
from elasticdl.model import structures, usercode

FORMS = "a function of outputs and labels, a Keras loss or its name, or a dict or list of these"


class Loss:
    """A loss in the one form that a step needs: the sum over elements.

    Args:
        what: how messages name it.
        given: a function of `outputs`, `labels` and perhaps `sample_weight`, or a Keras loss, its
            class or name, or a dict or sequence of these by output.
        output_names: the model's names for its outputs.
        output_weights: factors, one for all or by output; None: 1.

    Raises:
        UserError: `given` has another form.
    """

    def __init__(
        self, what: str, given: Any, output_names: Sequence[str] = (), output_weights: Any = None
    ) -> None:
        self._what = what
        self._names = output_names
        self._output_weights = output_weights
        self._function: Callable[..., Any] | None = None
        self._losses: Any = None
        if _is_user_function(given):
            if any(usercode.declares(given, name) for name in ("outputs", "labels")) or (
                usercode.takes_any(given)
            ):
                self._function = given
                return
            given = usercode.call(what, given, {})
        self._losses = _keras_losses(what, given)

    def __call__(self, outputs: Any, labels: Any, weights: Any, count: Any) -> Any:
        """Scalar float32: the loss summed over the elements.

        Args:
            outputs: of the model, each of shape [n, …].
            labels: as the dataset gives them, batched; None if it gives none.
            weights: [n], or by output; None if the dataset gives none.
            count: n, at least 1.
        """
        count = tf.cast(count, tf.float32)
        if self._function is not None:
            return self._of_function(self._function, outputs, labels, weights, count)
        total = tf.zeros((), tf.float32)
        used = 0
        for output in structures.outputs_of(outputs, self._names):
            loss = structures.part_for(self._what, self._losses, output)
            if loss is None:
                continue
            used += 1
            label = structures.part_for("labels", labels, output)
            if label is None:
                raise UserError(
                    f"{self._what}: expected labels{' for ' + output.name if output.name else ''}; "
                    "got none. Let create_dataset give (features, labels), or use add_loss."
                )
            weight = structures.part_for("sample weights", weights, output)
            factor = structures.part_for("loss_weights", self._output_weights, output)
            value = self._of_keras(loss, output.value, label, weight, count)
            total += value if factor is None else value * tf.cast(factor, tf.float32)
        if not used:
            raise UserError(
                f"{self._what}: expected a loss for at least one of the model's outputs; got "
                f"losses for {', '.join(map(str, self._losses))}, which it does not have."
            )
        return total

    def _of_function(
        self, function: Callable[..., Any], outputs: Any, labels: Any, weights: Any, count: Any
    ) -> Any:
        offered = {"outputs": outputs, "labels": labels, "sample_weight": weights}
        weighs = usercode.declares(function, "sample_weight") or usercode.takes_any(function)
        value = usercode.call(self._what, function, offered)
        if isinstance(value, str | keras.losses.Loss) or value is None or callable(value):
            raise UserError(
                f"{self._what}: expected a tensor from a function of outputs and labels; got "
                f"{value!r}."
            )
        with usercode.running(self._what):
            value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        if value.shape.rank == 0:
            if weights is not None and not weighs:
                raise UserError(
                    f"{self._what}: expected a loss for each element, of shape [batch], since "
                    "create_dataset gives sample weights; got a scalar. Leave out the mean, or "
                    "declare a parameter sample_weight and use it."
                )
            return value * count
        per_element = self._per_element(value, outputs, count, mean=True)
        if weights is not None and not weighs:
            per_element = _weighted(per_element, weights)
        return tf.reduce_sum(per_element)

    def _of_keras(self, loss: Any, outputs: Any, labels: Any, weights: Any, count: Any) -> Any:
        if isinstance(loss, str):
            loss = _crossentropy(structures.task_of(labels, outputs))
        with usercode.running(self._what):
            entries = _unreduced(loss)(labels, outputs)
        mean = loss.reduction != "sum"
        if entries.shape.rank == 0:
            entries = tf.cast(entries, tf.float32) * tf.ones(tf.shape(outputs)[:1], tf.float32)
        if weights is not None:
            entries = _weighted(entries, weights)
        return tf.reduce_sum(self._per_element(entries, outputs, count, mean=mean))

    def _per_element(self, entries: Any, outputs: Any, count: Any, *, mean: bool) -> Any:
        """[n] from [n, …]: the mean, or sum, over what belongs to one element."""
        first = tf.nest.flatten(outputs)[0]
        batch = first.shape[0] if first.shape.rank else None
        expected = "a scalar, or one value an element, of shape [batch] or [batch, …]"
        if entries.shape.rank is None:
            raise UserError(
                f"{self._what}: expected {expected}; got a tensor of unknown shape, as of "
                "tf.numpy_function. Give it one with tf.ensure_shape."
            )
        if entries.shape[0] is not None and entries.shape[0] != batch:
            shapes = [tuple(value.shape) for value in tf.nest.flatten(outputs)]
            raise UserError(
                f"{self._what}: expected {expected}; got shape {tuple(entries.shape)} for outputs "
                f"of shape {', '.join(map(str, shapes))}."
            )
        entries = tf.cast(entries, tf.float32)
        if entries.shape[0] is None:
            # Only the running program knows the sizes: a loss flattened over time, for example.
            rows = tf.shape(entries)[0]
            message = f"{self._what}: expected {expected}; got a first dimension other than batch"
            check = tf.debugging.Assert(
                tf.equal(rows, tf.cast(count, rows.dtype)), [message, rows, count]
            )
            with tf.control_dependencies([check] if check is not None else []):
                entries = tf.identity(entries)
        axes = list(range(1, entries.shape.rank))
        if not axes:
            return entries
        return tf.reduce_mean(entries, axes) if mean else tf.reduce_sum(entries, axes)


def _is_user_function(given: Any) -> bool:
    if not callable(given) or inspect.isclass(given) or isinstance(given, keras.losses.Loss):
        return False
    return not is_kerass(given)


def is_kerass(function: Any) -> bool:
    """Whether a function is Keras's own."""
    return (getattr(function, "__module__", None) or "").split(".")[0] == "keras"


def _keras_losses(what: str, given: Any) -> Any:
    """Loss objects in the structure of `given`; a string where only shapes can tell."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {str(name): _keras_losses(what, inner) for name, inner in given.items()}
    if isinstance(given, list | tuple):
        return [_keras_losses(what, inner) for inner in given]
    if isinstance(given, keras.losses.Loss):
        return given
    if isinstance(given, str):
        if given.lower() in ("crossentropy", "ce"):
            return "crossentropy"
        return _named(what, given)
    if inspect.isclass(given) and issubclass(given, keras.losses.Loss):
        with usercode.running(what):
            return given()
    if inspect.isfunction(given):
        return LossFunctionWrapper(given)
    raise UserError(f"{what}: expected {FORMS}; got {given!r} of type {type(given).__name__}.")


def _named(what: str, name: str) -> Any:
    known = sorted(name for name in ALL_OBJECTS_DICT if name.islower())
    try:
        found = keras.losses.get(name)
    except ValueError:
        raise UserError(
            f"{what}: expected a dotted name in the zoo or one of Keras's losses: "
            f"{', '.join(known)}; got {name!r}."
            f"{usercode.nearest(name, known) or ' Use one of those.'}"
        ) from None
    return found if isinstance(found, keras.losses.Loss) else LossFunctionWrapper(found)


def _crossentropy(task: str) -> Any:
    return LossFunctionWrapper(getattr(keras.losses, f"{task}_crossentropy"))


def _unreduced(loss: Any) -> Any:
    """The same loss, giving its entries. Keras's objects cannot be copied by `copy`."""
    clone = object.__new__(type(loss))
    clone.__dict__.update(loss.__dict__)
    clone.reduction = None
    return clone


def _weighted(entries: Any, weights: Any) -> Any:
    """`entries` of shape [n, …] times `weights` of shape [n], [n, 1] or that of `entries`."""
    weights = tf.cast(tf.convert_to_tensor(weights), entries.dtype)
    while weights.shape.rank > entries.shape.rank and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    if weights.shape.rank > entries.shape.rank:
        raise UserError(
            f"sample weights: expected shape [batch] or that of the loss, "
            f"{tuple(entries.shape)}; got {tuple(weights.shape)}."
        )
    while weights.shape.rank < entries.shape.rank:
        weights = tf.expand_dims(weights, -1)
    return entries * weights
