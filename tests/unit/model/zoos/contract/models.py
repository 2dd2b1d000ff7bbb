"""Plain Keras models."""

import types

import keras
import tensorflow as tf
from specs import absolute, elsewhere


class Plain(keras.Model):
    def __init__(self, units=1):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs["x"] if isinstance(inputs, dict) else inputs)


class Methods(Plain):
    def default_input(self, dataset, mode):
        return elsewhere(dataset, mode)

    @staticmethod
    def default_loss(outputs, labels):
        return tf.square(outputs - labels)

    def default_optimizer(self, lr=0.5):
        return keras.optimizers.SGD(lr)

    def default_metrics(self, mode, outputs, labels):
        return {"largest": tf.reduce_max(outputs)}


class Names(Plain):
    default_input = "specs.elsewhere"
    default_loss = "mse"
    default_optimizer = "adam"
    default_metrics = ("mae", "mse")


class Objects(Plain):
    default_input = elsewhere
    default_loss = keras.losses.MeanAbsoluteError()
    default_optimizer = keras.optimizers.Adam(0.25)
    default_metrics = types.MappingProxyType({"error": keras.metrics.MeanAbsoluteError()})


class Functions(Plain):
    """Functions of others put into the class: no methods."""

    default_input = elsewhere
    default_loss = absolute
    default_optimizer = keras.optimizers.SGD
    default_metrics = (keras.metrics.mean_absolute_error,)


class KerassFunction(Functions):
    default_loss = keras.losses.mean_absolute_error


class AskedOnce(Functions):
    def default_loss(self):
        return keras.losses.Huber()

    def default_optimizer(self):
        return "sgd"


class NoInput(Plain):
    default_loss = "mse"
    default_optimizer = "adam"


class NoLoss(Plain):
    default_input = elsewhere
    default_optimizer = "adam"


class NoOptimizer(Plain):
    default_input = elsewhere
    default_loss = "mse"


class OwnStep(Functions):
    def train_step(self, data):
        return {}


class BuiltLate(Functions):
    """Makes a layer only when it is built."""

    def build(self, input_shape):
        self.late = keras.layers.Dense(3)
        super().build(input_shape)

    def call(self, inputs):
        return self.dense(self.late(inputs["x"]))


class LooksLikeASpec:
    def create_model(self):
        return None


def compiled(units=1):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, keras.layers.Dense(units, name="y")(x))
    model.compile(keras.optimizers.Adam(0.125), "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model


compiled.default_input = elsewhere


def two_outputs():
    x = keras.Input((2,), name="x")
    outputs = {"a": keras.layers.Dense(1)(x), "b": keras.layers.Dense(3)(x)}
    model = keras.Model(x, outputs)
    model.compile(
        "sgd",
        {"a": "mse", "b": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        loss_weights={"a": 0.5, "b": 2.0},
        metrics={"a": ["mae"], "b": ["accuracy"]},
    )
    return model


two_outputs.default_input = elsewhere


def outputs_in_order():
    x = keras.Input((2,), name="x")
    return keras.Model(x, [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(3, name="b")(x)])


outputs_in_order.default_input = elsewhere
outputs_in_order.default_loss = "mse"
outputs_in_order.default_optimizer = "adam"


def half():
    x = keras.Input((2,), name="x")
    dense = keras.layers.Dense(1, dtype="mixed_float16")
    model = keras.Model(x, dense(x))
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    return model


half.default_input = elsewhere
half.default_loss = "mse"
half.default_optimizer = "sgd"


def no_model():
    return 3


not_callable = 3
