"""A Keras model as files for others: a SavedModel, and a Keras file where Keras can make one."""

import contextlib
import errno
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from elasticdl.errors import UserCodeError, UserError
from elasticdl.model import names, usercode

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Exported:
    """What could be written: a problem is one line, or empty where there is none."""

    saved_model_problem: str
    keras_file_problem: str


def variables(model: Any) -> dict[str, Any]:
    """The model's variables, trainable and not, under their `path`.

    A path that several have gets `:1`, `:2`, … from the second on, in the order of the layers.
    """
    found: dict[str, Any] = {}
    for variable in [*model.trainable_variables, *model.non_trainable_variables]:
        name, number = variable.path, 0
        while name in found:
            number += 1
            name = f"{variable.path}:{number}"
        found[name] = variable
    return found


def values(model: Any) -> dict[str, Array]:
    """The values of `variables`."""
    return {name: _value(variable) for name, variable in variables(model).items()}


def assign(model: Any, given: dict[str, Array], where: str) -> None:
    """Gives the variables of a built model their values.

    Args:
        where: what messages call the place that the values come from.

    Raises:
        UserError: names, shapes or dtypes differ; nothing is assigned.
    """
    own = variables(model)
    if own.keys() != given.keys():
        missing = ", ".join(sorted(own.keys() - given.keys()))
        extra = ", ".join(sorted(given.keys() - own.keys()))
        raise UserError(
            f"trained_model: expected the model's variables in {where}; it "
            + " and ".join(
                ([f"lacks {missing}"] if missing else [])
                + ([f"has {extra} besides"] if extra else [])
            )
            + ". The model's code is not the one that was trained."
        )
    for name, variable in own.items():
        value = given[name]
        if tuple(variable.shape) != value.shape or variable.dtype != value.dtype.name:
            raise UserError(
                f"trained_model: expected {name} as {variable.dtype} {tuple(variable.shape)}; "
                f"{where} has {value.dtype.name} {value.shape}. The model's code is not the one "
                "that was trained."
            )
    for name, variable in own.items():
        variable.assign(given[name])


def export(model: Any, saved_model: Path, keras_file: Path, inputs: Any) -> Exported:
    """Writes the model in both forms, as far as it can be written.

    Args:
        inputs: type specs of a batch, of any size, of the model's inputs.

    Raises:
        OSError: there is no room on the disk.
    """
    return Exported(
        saved_model_problem=_saved_model_problem(model, saved_model, inputs),
        keras_file_problem=_keras_file_problem(model, keras_file),
    )


def _saved_model_problem(model: Any, path: Path, inputs: Any) -> str:
    try:
        with usercode.running("SavedModel"), _quietly():
            model.export(
                str(path), format="tf_saved_model", verbose=False, input_signature=[inputs]
            )
    except UserCodeError as error:
        shutil.rmtree(path, ignore_errors=True)
        _refuse_full_disk(error, path)
        return str(error)
    return ""


def _keras_file_problem(model: Any, path: Path) -> str:
    """Saves the file and loads it again: Keras saves more than it can load."""
    custom = {
        type(layer).__name__: type(layer)
        for layer in model._flatten_layers()
        if type(layer).__module__.split(".")[0] != "keras"
    }
    problem = ""
    try:
        with usercode.running("Keras"), _quietly(), names.Scope():
            model.save(str(path))
            copy = keras.models.load_model(path, custom_objects=custom, compile=False)
        before, after = [
            [_value(variable) for variable in variables(each).values() if not _is_seed(variable)]
            for each in (model, copy)
        ]
        if len(before) != len(after) or not all(map(_same, before, after)):
            problem = "Keras: the model that it loads again has other weights than the one it saved"
    except UserCodeError as error:
        path.unlink(missing_ok=True)
        _refuse_full_disk(error, path)
        problem = str(error)
    if problem:
        path.unlink(missing_ok=True)
    return problem


def _refuse_full_disk(error: UserCodeError, path: Path) -> None:
    """That there is no room is nothing about the model, and told as what it is."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):
            raise OSError(number, os.strerror(number), str(path)) from error


def _is_seed(variable: Any) -> bool:
    """Whether it is the state of a random layer, which a Keras file does not have."""
    return str(variable.path).endswith("/seed_generator_state")


def _same(one: Array, other: Array) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def _value(variable: Any) -> Array:
    return np.asarray(tf.convert_to_tensor(variable.value).numpy())


@contextlib.contextmanager
def _quietly() -> Any:
    # Keras warns of what it cannot restore; the comparison afterwards decides.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
