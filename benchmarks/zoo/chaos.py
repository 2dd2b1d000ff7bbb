"""Models that prove what a disturbed training was made of: by their weights, and by their bits."""

import os
import threading

import keras
import tensorflow as tf

from elasticdl import ElasticDLSpec

ELEMENTS = 32  # of a step


class _Paced(ElasticDLSpec):
    """Takes its time for each step as long as there is a file `pace`; that changes no weight.

    Args:
        records: how many there are.
        pace: the file; empty: there is none.
        step_s: that time, in seconds.
    """

    def __init__(self, context=None, records=1, pace="", step_s=0.02):
        super().__init__(context)
        self.records = records
        self.pace = pace
        self.step_s = step_s

    def create_dataset(self, dataset, mode):
        description = {
            "id": tf.io.FixedLenFeature([], tf.int64),
            "x": tf.io.FixedLenFeature([8], tf.float32),
        }

        def parse(record):
            parsed = tf.io.parse_single_example(record, description)
            return {"id": parsed["id"], "x": parsed["x"]}, tf.reduce_sum(parsed["x"])

        return dataset.map(parse).shuffle(64)

    def paced(self, loss):
        if not self.pace:
            return loss

        def wait(loss):
            if os.path.exists(self.pace):
                threading.Event().wait(self.step_s)
            return loss

        waited = tf.numpy_function(wait, [tf.zeros([])], tf.float32)
        return loss + tf.ensure_shape(waited, [])


class Counting(_Paced):
    """Its weights are how often each record was used, if each step has `ELEMENTS` elements."""

    def create_model(self):
        inputs = {
            "id": keras.Input((), dtype="int64", name="id"),
            "x": keras.Input((8,), name="x"),
        }
        counts = keras.layers.Embedding(self.records, 1, embeddings_initializer="zeros")
        return keras.Model(inputs, counts(inputs["id"]))

    def create_optimizer(self):
        return keras.optimizers.SGD(float(ELEMENTS))

    def create_loss(self, outputs, labels):
        return self.paced(-outputs[:, 0])


class Network(_Paced):
    """Batch statistics, random layers and slots."""

    def create_model(self):
        inputs = {
            "id": keras.Input((), dtype="int64", name="id"),
            "x": keras.Input((8,), name="x"),
        }
        x = keras.layers.Dense(32, activation="relu")(inputs["x"])
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Dropout(0.2)(x)
        x = keras.layers.Concatenate()([x, keras.layers.Embedding(self.records, 4)(inputs["id"])])
        return keras.Model(inputs, keras.layers.Dense(1)(x))

    def create_optimizer(self):
        return keras.optimizers.Adam(1e-3)

    def create_loss(self, outputs, labels):
        return self.paced(tf.square(outputs[:, 0] - labels))
