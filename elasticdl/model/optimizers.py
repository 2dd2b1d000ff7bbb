"""What users give as an optimizer becomes one new optimizer, with the learning rate of the job."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from elasticdl.errors import UserError
from elasticdl.model import usercode

FORMS = "a Keras optimizer, its name or class, or a tf.compat.v1.train optimizer"


def made(what: str, given: Any, learning_rate: float | None) -> Any:
    """A new optimizer of the kind `given`: a name, a class, an object, or a function of `lr`.

    Args:
        what: how messages name it.
        learning_rate: takes the place of the optimizer's own; None leaves that.

    Raises:
        UserError: `given` makes no optimizer, or has no use for a learning rate that is there.
    """
    if isinstance(given, str):
        given = _class_named(what, given)
    if isinstance(given, keras.optimizers.Optimizer):
        # A copy: what stands in a class may be used by more than one job of a process.
        config = given.get_config()
        if learning_rate is not None:
            config["learning_rate"] = learning_rate
        with usercode.running(what):
            return type(given).from_config(config)
    if isinstance(given, tf.compat.v1.train.Optimizer):
        if learning_rate is not None:
            raise UserError(
                f"params: learning_rate has no use, since {what} is a finished optimizer. Make it "
                "a function with a parameter lr, or leave learning_rate out."
            )
        return given
    if not callable(given):
        raise UserError(f"{what}: expected {FORMS}; got {given!r}.")
    result = _called(what, given, learning_rate)
    if isinstance(result, keras.optimizers.Optimizer | tf.compat.v1.train.Optimizer):
        return result
    if isinstance(result, str) or (
        inspect.isclass(result) and issubclass(result, keras.optimizers.Optimizer)
    ):
        return made(what, result, learning_rate)
    raise UserError(f"{what}: expected {FORMS}; got {result!r} of type {type(result).__name__}.")


def loss_scaled(optimizer: Any, model: Any) -> Any:
    """`optimizer`, wrapped as `keras.Model.compile` does for a model of mixed_float16."""
    if (
        model.dtype_policy.name == "mixed_float16"
        and isinstance(optimizer, keras.optimizers.Optimizer)
        and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    ):
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    return optimizer


def _called(what: str, function: Callable[..., Any], learning_rate: float | None) -> Any:
    takes = usercode.declares(function, "lr") or usercode.takes_any(function)
    if learning_rate is None:
        for parameter in usercode.parameters(function):
            if parameter.name in ("lr", "learning_rate") and parameter.default is parameter.empty:
                raise UserError(
                    f"params: {what} requires a learning rate; got none. "
                    "Example: --params='learning_rate=0.01'"
                )
        return usercode.call(what, function, {})
    if not takes:
        raise UserError(
            f"params: learning_rate has no use, since {what} has no parameter lr or "
            "learning_rate. Add it there, or leave learning_rate out."
        )
    return usercode.call(what, function, {"lr": learning_rate})


def _class_named(what: str, name: str) -> Any:
    known = {
        key.lower(): value
        for key, value in vars(keras.optimizers).items()
        if inspect.isclass(value)
        and issubclass(value, keras.optimizers.Optimizer)
        and value not in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)
    }
    if name.lower() not in known:
        raise UserError(
            f"{what}: expected a dotted name in the zoo or one of Keras's optimizers: "
            f"{', '.join(sorted(known))}; got {name!r}."
            f"{usercode.nearest(name, known) or ' Use one of those.'}"
        )
    return known[name.lower()]
