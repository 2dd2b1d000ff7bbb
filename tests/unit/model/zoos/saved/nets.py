"""Models of all kinds, to be written and read again."""

import keras
import tensorflow as tf
from parts.layers import Doubled


class Common:
    """What a job needs besides the model."""

    default_loss = "mse"
    default_optimizer = "sgd"

    @staticmethod
    def default_input(dataset, mode):
        return dataset.map(lambda record: ({"x": tf.zeros([2])}, tf.zeros([1])))


def _complete(model):
    model.default_loss = "mse"
    model.default_optimizer = "sgd"
    model.default_input = Common.default_input
    return model


def functional(units=3, seed=1):
    x = keras.Input((2,), name="x")
    hidden = keras.layers.Dense(units, activation="relu")(x)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5, seed=seed)(hidden)
    return _complete(keras.Model(x, keras.layers.Dense(1, name="y")(Doubled()(hidden))))


class Subclassed(Common, keras.Model):
    """Builds a layer late; Keras cannot save it, for want of get_config."""

    def __init__(self, units=3):
        super().__init__()
        self.units = units
        self.out = keras.layers.Dense(1)

    def build(self, input_shape):
        self.hidden = keras.layers.Dense(self.units)
        super().build(input_shape)

    def call(self, inputs):
        return {"y": self.out(self.hidden(inputs["x"])), "sum": tf.reduce_sum(inputs["x"], -1)}


class SameNames(Common, keras.Model):
    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(1, name="twin")
        self.two = keras.layers.Dense(1, name="twin")

    def call(self, inputs):
        return self.one(inputs["x"]) + self.two(inputs["x"])


class Pairs(Common, keras.Model):
    """Takes a tuple."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        number, text = inputs
        return self.dense(number) + tf.cast(tf.strings.length(text), tf.float32)


class NoGraph(Common, keras.Model):
    """Works outside of graphs only, so that there is no SavedModel of it."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def build(self, input_shape):
        self.dense.build(input_shape["x"])

    def call(self, inputs):
        if not tf.executing_eagerly():
            raise RuntimeError("not in a graph")
        return self.dense(inputs["x"])


class AnySize(Common, keras.Model):
    """Takes images of any size that is not too small."""

    def __init__(self):
        super().__init__()
        self.convolution = keras.layers.Conv2D(2, 5)

    def call(self, inputs):
        return tf.reduce_max(self.convolution(inputs["image"]), [1, 2])


def brain():
    x = keras.Input((2,), name="x")
    return _complete(keras.Model(x, keras.layers.Dense(2, dtype=keras.DTypePolicy("bfloat16"))(x)))
