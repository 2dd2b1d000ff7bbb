"""Models that have one thing wrong with them each."""

import keras
import tensorflow as tf

from elasticdl import ElasticDLSpec


class Fine(ElasticDLSpec):
    """Nothing is wrong with this one."""

    def __init__(self, context=None, units=1):
        super().__init__(context)
        self.units = units

    def create_model(self):
        number = keras.Input((1,), name="id")
        return keras.Model(number, keras.layers.Dense(self.units)(number))

    def create_optimizer(self, lr=1e-5):
        return keras.optimizers.SGD(lr)

    def create_loss(self, outputs, labels):
        return tf.square(outputs[:, 0] - labels)

    def create_dataset(self, dataset, mode):
        return dataset.map(pair)


def pair(record):
    number = tf.io.parse_single_example(record, {"id": tf.io.FixedLenFeature([], tf.int64)})["id"]
    return {"id": tf.cast(number, tf.float32)[None]}, tf.cast(number, tf.float32)


class Unfinished(ElasticDLSpec):
    def create_model(self):
        return keras.Sequential([keras.layers.Dense(1)])

    def create_optimizer(self, lr=0.1):
        return keras.optimizers.SGD(lr)


class NoForm:
    """None of the forms that a model may have."""


class LossRaises(Fine):
    def create_loss(self, outputs, labels):
        return self.distance(outputs, labels["missing"])

    def distance(self, outputs, labels):
        return tf.square(outputs - labels)


class DatasetRaises(Fine):
    def create_dataset(self, dataset, mode):
        raise LookupError("the vocabulary is not there")


class RecordRaises(Fine):
    """Its function of one record cannot do anything with record 11."""

    def create_dataset(self, dataset, mode):
        def check(features, label):
            tf.debugging.assert_none_equal(label, 11.0, message="eleven is not allowed")
            return features, label

        return dataset.map(pair).map(check)


class LayerRaises(Fine):
    def create_model(self):
        class Layer(keras.layers.Layer):
            def call(self, inputs):
                raise ArithmeticError("this layer cannot add")

        return keras.Sequential([Layer()])


class WrongShape(Fine):
    def create_dataset(self, dataset, mode):
        return dataset.map(pair).map(lambda features, label: ({"id": tf.ones([3])}, label))


class WrongShapeInside(Fine):
    """A subclassed model that finds out only when it is called."""

    def create_model(self):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.matrix = self.add_weight(shape=(7, 1))

            def call(self, inputs):
                return inputs["id"] @ self.matrix

        return Model()


class WrongLabels(Fine):
    def create_loss(self, outputs, labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs)


class Drops(Fine):
    def create_dataset(self, dataset, mode):
        return dataset.map(pair).filter(lambda features, label: label < 0)


class Endless(Fine):
    def create_dataset(self, dataset, mode):
        return dataset.map(pair).repeat()


class Ragged(Fine):
    def create_dataset(self, dataset, mode):
        def varied(features, label):
            return {"id": tf.ones([tf.cast(label, tf.int32) % 3 + 1])}, label

        return dataset.map(pair).map(varied)


class MetricsOfText(Fine):
    def create_metrics(self, mode, outputs, labels):
        return "accuracy"


class MetricOfVectors(Fine):
    def create_metrics(self, mode, outputs, labels):
        return {"distance": tf.abs(outputs[:, 0] - labels)}


class MetricsRaise(Fine):
    def create_metrics(self, mode, outputs, labels):
        return {"distance": outputs.no_such_attribute}


class Diverges(Fine):
    """Its loss is no number for records from 40 on."""

    def create_loss(self, outputs, labels):
        return tf.math.log(tf.where(labels < 40, 1.0, -1.0)) + 0 * outputs[:, 0]


class NoUseOfWeights(Fine):
    def create_loss(self, outputs, labels):
        return labels


class ModelOfNothing(Fine):
    def create_model(self):
        return "a model"


class Leaves(Fine):
    def create_model(self):
        raise SystemExit("no licence")
