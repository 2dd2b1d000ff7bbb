"""Models with several outputs: which loss, label, weight or metric goes with which output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elasticdl.errors import UserError


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Args:
        name: its key in a dict of outputs, or its name in the model; empty if it is the only one.
        index: its place in a sequence of outputs.
        value: the tensor.
    """

    name: str
    index: int
    value: Any


def outputs_of(outputs: Any, names: Sequence[str]) -> Iterator[Output]:
    """The outputs of a model one by one.

    Args:
        outputs: a tensor, or a dict or sequence of tensors.
        names: the model's own names for a sequence; as many, or none.

    Raises:
        UserError: a structure within a structure.
    """
    if isinstance(outputs, Mapping):
        pairs = list(outputs.items())
    elif isinstance(outputs, list | tuple):
        if len(names) != len(outputs):
            names = [f"output_{i}" for i in range(len(outputs))]
        pairs = list(zip(names, outputs, strict=True))
    else:
        yield Output("", 0, outputs)
        return
    for index, (name, value) in enumerate(pairs):
        if isinstance(value, Mapping | list | tuple):
            raise UserError(
                f"model: expected outputs as a tensor, a dict or a tuple of tensors; got a "
                f"structure within the output {name!r}. Write a loss function for it."
            )
        yield Output(name, index, value)


def part_for(what: str, given: Any, output: Output) -> Any:
    """The part of `given` that belongs to `output`.

    Args:
        what: how messages name `given`.
        given: one value for all outputs, or a dict by name or a sequence in order.

    Returns:
        None where a dict does not have the output.

    Raises:
        UserError: a sequence that is too short.
    """
    if isinstance(given, Mapping):
        return given.get(output.name) if output.name else _only(what, list(given.values()))
    if isinstance(given, list | tuple):
        if not output.name:
            return _only(what, given)
        if output.index >= len(given):
            raise UserError(
                f"{what}: expected one for each of the model's outputs; got {len(given)}, and "
                f"none for output {output.name!r}."
            )
        return given[output.index]
    return given


def _only(what: str, values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    raise UserError(
        f"{what}: expected one, since the model has one output; got {len(values)}. Give the "
        "model as many outputs, or write a function that takes them together."
    )


def task_of(labels: Any, outputs: Any) -> str:
    """binary, sparse_categorical or categorical: how Keras tells the meaning of `accuracy`.

    Args:
        labels: a tensor of shape [n] or [n, …].
        outputs: a tensor of shape [n, …].
    """
    if outputs.shape[-1] == 1:
        return "binary"
    if len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1:
        return "sparse_categorical"
    return "categorical"
