"""A small convolutional network that reads handwritten digits of 8 by 8 pixels."""

import keras
import tensorflow as tf

from elasticdl import ElasticDLSpec, Mode


class Digits(ElasticDLSpec):
    """Records are tf.Example with `image`, float [8, 8] from 0 to 16, and `label`, int [1].

    Args:
        filters: channels of the first convolutions; the last has twice as many.
        dropout: share of the features that training leaves out before the last layer.
    """

    def __init__(self, context=None, filters=32, dropout=0.4):
        super().__init__(context=context)
        self.filters = filters
        self.dropout = dropout

    def create_model(self):
        image = keras.Input((8, 8), name="image")
        x = keras.layers.Reshape((8, 8, 1))(image)
        for _ in range(2):
            x = keras.layers.Conv2D(self.filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Conv2D(2 * self.filters, 3, activation="relu")(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dropout(self.dropout)(x)
        digit = keras.layers.Dense(10, name="digit")(x)
        return keras.Model(image, digit, name="digits")

    def create_optimizer(self, lr=0.002):
        return keras.optimizers.Adam(lr)

    def create_loss(self, outputs, labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.reshape(labels, [-1]), logits=outputs
        )

    def create_metrics(self, mode, outputs, labels):
        if mode != Mode.EVALUATION:
            return {}
        right = tf.equal(tf.argmax(outputs, axis=1), tf.reshape(labels, [-1]))
        return {"accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}

    def create_dataset(self, dataset, mode):
        features = {"image": tf.io.FixedLenFeature([8, 8], tf.float32)}
        if mode != Mode.PREDICTION:
            features["label"] = tf.io.FixedLenFeature([1], tf.int64)

        def parse(record):
            example = tf.io.parse_single_example(record, features)
            inputs = {"image": example["image"] / 16.0}
            return inputs if mode == Mode.PREDICTION else (inputs, example["label"])

        dataset = dataset.map(parse)
        return dataset.shuffle(1024) if mode == Mode.TRAINING else dataset
