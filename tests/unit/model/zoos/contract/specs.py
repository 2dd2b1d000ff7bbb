"""Models in the form of an ElasticDLSpec."""

import keras
import tensorflow as tf

from elasticdl import ElasticDLSpec, Mode


class Line(ElasticDLSpec):
    """One dense layer; y from x."""

    def __init__(self, context=None, units=1, scale=1.0):
        super().__init__(context=context)
        self.context = context
        self.units = units
        self.scale = scale

    def create_model(self):
        x = keras.Input((2,), name="x")
        return keras.Model(x, keras.layers.Dense(self.units)(x))

    def create_optimizer(self, lr=0.1):
        return keras.optimizers.SGD(lr)

    def create_loss(self, outputs, labels):
        return tf.reduce_sum(tf.square(outputs - labels), -1) * self.scale

    def create_dataset(self, dataset, mode):
        def parse(record):
            numbers = tf.strings.to_number(tf.strings.split(record, " "))
            features = {"x": tf.ensure_shape(numbers[:2], [2])}
            if mode == Mode.PREDICTION:
                return features
            return features, tf.ensure_shape(numbers[2:3], [1])

        return dataset.map(parse)


class ScalarLoss(Line):
    def create_loss(self, labels, outputs):
        return tf.reduce_mean(tf.square(outputs - labels))

    def create_metrics(self, outputs, labels):
        return {"error": tf.reduce_mean(tf.abs(outputs - labels))}


class Everything(Line):
    """Methods with **kwargs, and a learning rate of its own."""

    def __init__(self, learning_rate, **kwargs):
        super().__init__(**kwargs)
        self.learning_rate = learning_rate

    def create_optimizer(self, **kwargs):
        assert not kwargs
        return keras.optimizers.SGD(self.learning_rate)

    def create_loss(self, **kwargs):
        assert set(kwargs) == {"outputs", "labels", "sample_weight"}
        return tf.square(kwargs["outputs"] - kwargs["labels"])

    def create_metrics(self, **kwargs):
        assert set(kwargs) == {"mode", "outputs", "labels", "predictions", "sample_weight"}
        return {}


class Free(Line):
    def __init__(self, **params):
        super().__init__()
        self.params = params

    def create_optimizer(self, learning_rate):
        return tf.compat.v1.train.GradientDescentOptimizer(learning_rate)


class Unfinished(ElasticDLSpec):
    def create_model(self):
        return None

    def create_dataset(self, dataset, mode):
        return dataset


class NoModel(Line):
    def create_model(self):
        return "a model"


class BadOptimizer(Line):
    def create_optimizer(self):
        return 0.1


class Flawed(Line):
    def create_loss(self, outputs, labels):
        return self.difference(outputs, labels)

    def difference(self, outputs, labels):
        raise ZeroDivisionError("too flat")

    def create_dataset(self, dataset, mode):
        def parse(record):
            return tf.io.decode_raw(record, tf.float32) + record

        return dataset.map(parse)


class Renamed(Line):
    def create_loss(self, outputs, targets):
        return outputs - targets


class Weighed(Line):
    def create_loss(self, outputs, labels, sample_weight):
        return tf.reduce_mean(tf.square(outputs - labels)[:, 0] * sample_weight)


class Given(Line):
    """Returns what the test puts in."""

    loss = None
    metrics = None
    dataset = None

    def create_loss(self, outputs, labels):
        return type(self).loss(outputs, labels)

    def create_metrics(self, mode, outputs, labels, predictions):
        return type(self).metrics(mode, outputs, labels, predictions)

    def create_dataset(self, dataset, mode):
        return type(self).dataset(dataset, mode)


def elsewhere(dataset, mode):
    return dataset.map(lambda record: ({"x": tf.zeros([2])}, tf.zeros([1])))


def absolute(y_true, y_pred):
    return tf.abs(y_true - y_pred)


def slow(lr):
    return keras.optimizers.Adam(lr / 10)
