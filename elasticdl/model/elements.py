"""Names, shapes and dtypes of a model's inputs: type specs, their JSON, and tensors of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from elasticdl.errors import UserError


def to_json(features: Any) -> str:
    """The type specs of a batch of features as JSON; sizes that vary, as the batch's, are null.

    Raises:
        UserError: it holds something else than dicts, lists and tuples of tensors.
    """
    return json.dumps(_encoded(features), sort_keys=True)


def from_json(text: str) -> Any:
    """The type specs that `to_json` wrote."""
    return _decoded(json.loads(text))


def named(features: Any, names: Sequence[str]) -> Any:
    """The same type specs with names for the dense ones: keys in dicts, elsewhere `names`.

    Args:
        names: as many as there are leaves outside of dicts; otherwise they are not used.
    """
    if isinstance(features, Mapping):
        return {key: named(inner, [str(key)]) for key, inner in features.items()}
    leaves = tf.nest.flatten(features)
    if len(leaves) != len(names):
        return features
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, name) if isinstance(spec, tf.TensorSpec) else spec
        for spec, name in zip(leaves, names, strict=True)
    ]
    return tf.nest.pack_sequence_as(features, specs)


def to_build_with(features: Any) -> Any:
    """What a model can be called with to create its variables.

    Zeros where sizes are known; symbolic tensors where some vary, since a model may need more than
    any size that we would make up.
    """
    leaves = tf.nest.flatten(features)
    if all(isinstance(leaf, tf.TensorSpec) for leaf in leaves) and any(
        None in leaf.shape.as_list()[1:] for leaf in leaves
    ):
        return _mapped(
            features, lambda spec: keras.KerasTensor(spec.shape.as_list(), spec.dtype.name)
        )
    return zeros(features)


def shown(features: Any) -> str:
    """The types in words: float32[batch, 8, 8]; in dicts, lists and tuples, as these are."""

    def one(spec: Any) -> str:
        rank = spec.shape.rank
        sizes = ["…"] if rank is None else [_size(size) for size in spec.shape.as_list()[1:]]
        return f"{spec.dtype.name}[{', '.join(['batch', *sizes])}]"

    return str(_mapped(features, one)).replace("'", "")


def _size(size: int | None) -> str:
    return "any" if size is None else str(size)


def zeros(features: Any) -> Any:
    """Zeros and empty strings of these types, with sizes of 1 where any will do."""
    return _mapped(features, _zeros_of)


def _mapped(structure: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(structure, Mapping):
        return {name: _mapped(inner, function) for name, inner in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)([_mapped(inner, function) for inner in structure])
    return function(structure)


def _encoded(structure: Any) -> dict[str, Any]:
    if isinstance(structure, Mapping):
        return {"dict": {str(name): _encoded(inner) for name, inner in structure.items()}}
    if isinstance(structure, list | tuple) and not hasattr(structure, "_fields"):
        kind = "list" if isinstance(structure, list) else "tuple"
        return {kind: [_encoded(inner) for inner in structure]}
    for kind, spec in _KINDS.items():
        if isinstance(structure, spec):
            shape = structure.shape.as_list() if structure.shape.rank is not None else None
            encoded: dict[str, Any] = {"shape": shape, "dtype": structure.dtype.name}
            if kind == "tensor" and structure.name:
                encoded["name"] = structure.name
            if kind == "ragged":
                encoded["ragged_rank"] = structure.ragged_rank
            return {kind: encoded}
    raise UserError(
        "create_dataset: expected features as dicts, lists and tuples of tensors; got "
        f"{structure!r}."
    )


def _decoded(encoded: Mapping[str, Any]) -> Any:
    ((kind, inner),) = encoded.items()
    if kind == "dict":
        return {name: _decoded(value) for name, value in inner.items()}
    if kind in ("list", "tuple"):
        values = [_decoded(value) for value in inner]
        return values if kind == "list" else tuple(values)
    dtype = tf.as_dtype(inner["dtype"])
    if kind == "ragged":
        return tf.RaggedTensorSpec(inner["shape"], dtype, ragged_rank=inner["ragged_rank"])
    if kind == "tensor":
        return tf.TensorSpec(inner["shape"], dtype, inner.get("name"))
    return tf.SparseTensorSpec(inner["shape"], dtype)


_KINDS = {
    "tensor": tf.TensorSpec,
    "ragged": tf.RaggedTensorSpec,
    "sparse": tf.SparseTensorSpec,
}


def _zeros_of(spec: Any) -> Any:
    shape = [1 if size is None else size for size in spec.shape.as_list()]
    dense = tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank)
    return tf.sparse.from_dense(dense) if isinstance(spec, tf.SparseTensorSpec) else dense
