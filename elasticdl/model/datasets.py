"""What users' input functions return becomes a finite dataset of single elements."""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from elasticdl.errors import UserError
from elasticdl.model.mode import Mode

_BATCHING = ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset")
# What makes other elements from several: batches below it are the user's own business.
_REGROUPING = (
    "_UnbatchDataset",
    "_FlatMapDataset",
    "_InterleaveDataset",
    "_ParallelInterleaveDataset",
    "_WindowDataset",
)


def checked(what: str, made: Any, mode: Mode, model: Any) -> tuple[Any, bool]:
    """The dataset of single elements that `made` holds, and whether it had batches.

    Raises:
        UserError: `made` is no dataset, is endless, has no fixed order, or does not fit the model.
    """
    if not isinstance(made, tf.data.Dataset):
        raise UserError(
            f"{what}: expected a tf.data.Dataset; got {made!r} of type {type(made).__name__}."
        )
    if _is_endless(made):
        raise UserError(
            f"{what}: expected a dataset that ends; got an endless one. Leave out repeat(): "
            "--epochs says how often the data is used."
        )
    for node in _nodes(made):
        if getattr(node, "_deterministic", "default") == "false":
            raise UserError(
                f"{what}: expected the same order of elements each time; got an operation with "
                "deterministic=False. Leave that out."
            )
    if mode is not Mode.PREDICTION and isinstance(made.element_spec, tuple):
        size = len(made.element_spec)
        if size > 3:
            raise UserError(
                f"{what}: expected features, (features, labels) or (features, labels, sample "
                f"weights); got tuples of {size}. Put several features into a dict."
            )
    batches = _is_batched(made, unpack(made.element_spec, mode, model)[0], model)
    dataset = made.unbatch() if batches else made
    _check_fit(what, unpack(dataset.element_spec, mode, model)[0], model)
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options), batches


def unpack(element: Any, mode: Mode, model: Any) -> tuple[Any, Any, Any]:
    """Features, labels and sample weights of an element (or batch, or element_spec), as Keras does.

    In prediction there are features only: a tuple is (features, …), unless it has as many
    entries as a functional model has inputs, and its first entry alone has not. A dict of
    features is reduced to what a functional model has as inputs, in the model's own structure.
    """
    if not isinstance(element, tuple):
        return _conformed(element, model), None, None
    if mode is Mode.PREDICTION:
        inputs = _inputs(model)
        flat = len(tf.nest.flatten(element))
        if flat > 1 and flat == len(inputs) and len(tf.nest.flatten(element[0])) != flat:
            return element, None, None
        return _conformed(element[0], model), None, None
    features, labels, weights = (*element, None, None)[:3]
    return _conformed(features, model), labels, weights


def _conformed(features: Any, model: Any) -> Any:
    """Features in the structure of a functional model's inputs: Keras warns of any other."""
    if not isinstance(features, Mapping) or not _inputs(model):
        return features
    struct = getattr(model, "_inputs_struct", None)
    names = input_names(model)
    if _has_names(features, model):
        picked = [features[name] for name in names]
    elif len(features) == len(names):
        picked = tf.nest.flatten(features)
    else:
        return features
    if isinstance(struct, Mapping):
        return dict(zip(struct, picked, strict=True))
    return picked if isinstance(struct, list | tuple) else picked[0]


def _nodes(dataset: Any) -> Iterator[Any]:
    yield dataset
    for below in dataset._inputs():
        yield from _nodes(below)


def _is_endless(dataset: Any) -> bool:
    # By structure: a dataset that is built inside a function has no cardinality to ask for.
    kind = type(dataset).__name__
    if kind in ("_RepeatDataset", "_ShuffleAndRepeatDataset", "_TakeDataset"):
        count = tf.get_static_value(dataset._count)
        if kind != "_TakeDataset" and count is not None and count < 0:
            return True
        if kind == "_TakeDataset" and (count is None or count >= 0):
            return False
    if kind in ("_RandomDataset", "_TakeWhileDataset"):
        return kind == "_RandomDataset"
    below = [_is_endless(inner) for inner in dataset._inputs()]
    return bool(below) and (all(below) if kind == "_ZipDataset" else any(below))


def _is_batched(dataset: Any, features: Any, model: Any) -> bool:
    pairs = _fitted(features, model)
    if pairs:
        return all(_is_batch_of(spec.shape, shape) for _, spec, shape in pairs)
    specs = tf.nest.flatten(features)
    if any(spec.shape.rank in (None, 0) or spec.shape[0] is not None for spec in specs):
        return False
    node = dataset
    while type(node).__name__ not in _REGROUPING:
        if type(node).__name__ in _BATCHING:
            return True
        below = node._inputs()
        if len(below) != 1:
            return False
        node = below[0]
    return False


def _is_batch_of(shape: Any, expected: Any) -> bool:
    if shape.rank is None or expected.rank is None or shape.rank != expected.rank + 1:
        return False
    if not shape[1:].is_compatible_with(expected):
        return False
    # Keras takes [4, 1] for [4]; that is one element.
    squeezable = shape[-1] == 1 and shape[:-1].is_compatible_with(expected)
    return shape[0] is None or not squeezable


def _check_fit(what: str, features: Any, model: Any) -> None:
    inputs = _inputs(model)
    if not inputs:
        return
    names = [str(name) for name in input_names(model)]
    count = len(tf.nest.flatten(features))
    if count != len(inputs) and not _has_names(features, model):
        got = (
            f"{count}: {', '.join(map(str, features))}" if isinstance(features, Mapping) else count
        )
        raise UserError(
            f"{what}: expected features for the model's {len(inputs)} inputs "
            f"({', '.join(names)}); got {got}."
        )
    for name, spec, expected in _fitted(features, model):
        shape = spec.shape
        fits = shape.is_compatible_with(expected) or (
            shape.rank is not None
            and (
                (shape[-1:] == [1] and shape[:-1].is_compatible_with(expected))
                or (expected[-1:] == [1] and shape.is_compatible_with(expected[:-1]))
            )
        )
        if not fits:
            raise UserError(
                f"{what}: expected elements of shape {_shown(expected)} for the model's input "
                f"{name!r}; got {_shown(shape)}."
            )


def _shown(shape: Any) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _inputs(model: Any) -> list[Any]:
    """The symbolic inputs of a functional or built sequential model; of others, none."""
    try:
        return list(model.inputs or [])
    except (AttributeError, ValueError):
        return []


def _has_names(features: Any, model: Any) -> bool:
    """Whether Keras will pick the model's inputs out of a dict of features by name."""
    return isinstance(features, Mapping) and all(name in features for name in input_names(model))


def input_names(model: Any) -> list[str]:
    """The names of a functional model's inputs, in order; of other models, none."""
    struct = getattr(model, "_inputs_struct", None)
    if isinstance(struct, Mapping):
        return [str(name) for name in struct]
    return [tensor.name for tensor in _inputs(model)]


def _fitted(features: Any, model: Any) -> list[tuple[str, Any, Any]]:
    """Name, spec and expected shape of each of the model's inputs, where features match them."""
    inputs = _inputs(model)
    shapes = [tf.TensorShape(tensor.shape[1:]) for tensor in inputs]
    names = input_names(model)
    if _has_names(features, model):
        specs = [features[name] for name in names]
    else:
        specs = tf.nest.flatten(features)
    if len(specs) != len(inputs):
        return []
    by_name = {tensor.name: shape for tensor, shape in zip(inputs, shapes, strict=True)}
    shapes = [by_name.get(name, shape) for name, shape in zip(names, shapes, strict=True)]
    return list(zip(names, specs, shapes, strict=True))
