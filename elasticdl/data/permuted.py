"""Input functions that only map and shuffle: any elements of a slice, without those before them."""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.data.ops import dataset_ops

# Threads that read ahead take blocks each; with more processors than that, records are mapped in
# parallel where the user says AUTOTUNE.
_READING_THREADS = 4

Seeded = Callable[[tf.Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class Permuted:
    """A function whose elements are mapped records in another order.

    Args:
        order: from how many records a slice has, and its seed, to their order, int64 [n]; None
            where nothing is shuffled.
        mapped: from some records, and the slice's seed, to a batch of their elements.
    """

    order: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
    mapped: Callable[[tf.Tensor, tf.Tensor], Any]

    def places(self, count: int, seed: int) -> NDArray[np.int64]:
        """Which record each element of the slice comes from."""
        if self.order is None or not count:
            return np.arange(count)
        order = self.order(tf.constant(count, tf.int64), tf.constant(seed, tf.int64))
        places: NDArray[np.int64] = order.numpy()
        return places

    def elements(self, records: NDArray[np.object_], seed: int) -> Any:
        """The elements of one or more records, as one batch."""
        return self.mapped(tf.constant(records, tf.string), tf.constant(seed, tf.int64))


def trace(
    create_dataset: Callable[[tf.data.Dataset], tf.data.Dataset], seeded: Seeded
) -> Permuted | None:
    """The function in two parts; None where it does more than map and shuffle.

    A shuffle's order depends on no element, and what is mapped on no other one: so records may as
    well be shuffled before they are mapped.

    Args:
        create_dataset: traces to the same graph each time; nothing in that keeps a state.
        seeded: decides a pipeline's seeds while it is built.
    """
    some = tf.TensorSpec([None], tf.string)
    number = tf.TensorSpec([], tf.int64)

    def chain(records: tf.Tensor, seed: tf.Tensor) -> _Chain:
        with seeded(seed):
            elements = create_dataset(tf.data.Dataset.from_tensor_slices(records))
        return _chain(elements, records)

    shuffles = 0

    def order(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        nonlocal shuffles
        numbers = tf.data.Dataset.range(count)
        # What is shuffled does not matter to a shuffle, nor how much of it this function is given.
        for shuffle in chain(tf.constant([], tf.string), seed).shuffles:
            shuffles += 1
            numbers = _on(shuffle, numbers, numbers.element_spec)
        return numbers.batch(count).get_single_element()

    def mapped(records: tf.Tensor, seed: tf.Tensor) -> Any:
        elements = tf.data.Dataset.from_tensor_slices(records)
        found = chain(records, seed)
        for each in found.maps:
            elements = _on(each, elements, found.element_spec)
        return elements.batch(tf.size(records, tf.int64)).get_single_element()

    try:
        ordering = tf.function(order, autograph=False).get_concrete_function(number, number)
        mapping = tf.function(mapped, autograph=False).get_concrete_function(some, number)
    except _DoesMore:
        return None
    return Permuted(ordering if shuffles else None, mapping)


class _DoesMore(Exception):
    """The function does something else with its records."""


@dataclass(frozen=True)
class _Chain:
    """The operations of a dataset, in the order in which records pass through them."""

    maps: list[tf.Operation]
    shuffles: list[tf.Operation]
    element_spec: Any


def _chain(elements: tf.data.Dataset, records: tf.Tensor) -> _Chain:
    maps, shuffles = [], []
    operation = elements._variant_tensor.op
    while operation.type != "TensorSliceDataset":
        if operation.type in ("MapDataset", "ParallelMapDatasetV2"):
            maps.append(operation)
        elif operation.type in ("ShuffleDataset", "ShuffleDatasetV2", "ShuffleDatasetV3"):
            shuffles.append(operation)
        elif not _passes(operation):
            raise _DoesMore
        if records.op in _before(operation.inputs[1:]):
            raise _DoesMore
        operation = operation.inputs[0].op
    if [each.op for each in operation.inputs] != [records.op]:
        raise _DoesMore
    return _Chain(maps[::-1], shuffles[::-1], elements.element_spec)


def _passes(operation: tf.Operation) -> bool:
    """Whether elements pass through as they are."""
    if operation.type in ("CacheDataset", "CacheDatasetV2"):
        return bool(tf.get_static_value(operation.inputs[1]) == b"")  # in memory
    return operation.type in ("PrefetchDataset", "OptionsDataset")


def _before(tensors: Iterable[tf.Tensor]) -> set[tf.Operation]:
    """All operations that these tensors depend on."""
    found: set[tf.Operation] = set()
    open_ = [tensor.op for tensor in tensors]
    while open_:
        operation = open_.pop()
        if operation not in found:
            found.add(operation)
            open_ += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return found


def _on(operation: tf.Operation, dataset: tf.data.Dataset, element_spec: Any) -> tf.data.Dataset:
    """The same operation on another dataset."""
    kind, inputs = operation.type, [dataset._variant_tensor, *operation.inputs[1:]]
    attributes = dict(operation.node_def.attr)
    if kind == "ParallelMapDatasetV2":
        *_, parallel = inputs
        automatic = tf.get_static_value(parallel) == tf.data.AUTOTUNE
        if automatic and (os.cpu_count() or 1) <= _READING_THREADS:
            kind = "MapDataset"
            del inputs[-1], attributes["deterministic"]
    elif kind.startswith("Shuffle"):
        flat = dataset._flat_structure
        attributes["output_types"].list.type[:] = [t.as_datatype_enum for t in flat["output_types"]]
        del attributes["output_shapes"].list.shape[:]
        attributes["output_shapes"].list.shape.extend(s.as_proto() for s in flat["output_shapes"])
    variant = operation.graph.create_op(
        kind, inputs, [tf.variant], attrs=attributes, compute_device=False
    ).outputs[0]
    return dataset_ops._VariantDataset(variant, element_spec)
