"""A model whose weights say how often each record was trained on."""

import keras
import numpy as np
import tensorflow as tf

from elasticdl import ElasticDLSpec, Mode


class Counting(ElasticDLSpec):
    """Adds lr / (elements of the step) to the weight of each record in a step.

    Args:
        records: how many there are.
        without: [begin, end): records that the input function drops.
        bad: a record whose loss is not a number.
    """

    def __init__(self, context=None, records=1, without=(0, 0), bad=-1):
        super().__init__(context)
        self.records = records
        self.without = without
        self.bad = bad

    def create_model(self):
        number = keras.Input((), dtype="int64", name="id")
        counts = keras.layers.Embedding(self.records, 1, embeddings_initializer="zeros")
        return keras.Model(number, counts(number))

    def create_optimizer(self, lr=16.0):
        return keras.optimizers.SGD(lr)

    def create_loss(self, outputs, labels):
        return tf.where(labels == self.bad, np.nan, -outputs[:, 0])

    def create_dataset(self, dataset, mode):
        def parse(record):
            return tf.io.parse_single_example(record, {"id": tf.io.FixedLenFeature([], tf.int64)})

        begin, end = self.without
        numbers = dataset.map(parse).filter(lambda x: x["id"] < begin or x["id"] >= end)
        return numbers if mode == Mode.PREDICTION else numbers.map(lambda x: (x, x["id"]))
