"""Models of handwritten digits that show different things of training."""

import os

import keras
import numpy as np
import tensorflow as tf

from elasticdl import ElasticDLSpec, Mode


class Digits(ElasticDLSpec):
    """Classifies digits; labels are (id, digit), the id being -1 where nothing is trained.

    With `used`, each process appends there which records each version was computed from.
    """

    def __init__(self, context=None, used=""):
        super().__init__(context)
        self.used = used

    def create_optimizer(self, lr=0.003):
        self.optimizer = keras.optimizers.Adam(lr)
        return self.optimizer

    def create_dataset(self, dataset, mode):
        features = {"image": tf.io.FixedLenFeature([8, 8], tf.float32)}
        if mode != Mode.PREDICTION:
            features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in ("id", "label")}

        def parse(record):
            parsed = tf.io.parse_single_example(record, features)
            image = {"image": parsed["image"] / 16}
            if mode == Mode.PREDICTION:
                return image
            number = parsed["id"] if mode == Mode.TRAINING else tf.constant(-1, tf.int64)
            return image, tf.stack([number, parsed["label"]])

        dataset = dataset.map(parse)
        return dataset.shuffle(50) if mode == Mode.TRAINING else dataset

    def create_loss(self, outputs, labels):
        logits = tf.cast(outputs, tf.float32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels[:, 1], logits=logits)
        if not self.used:
            return loss
        version = self.optimizer.iterations.value
        nothing = tf.numpy_function(self._note, [version, labels[:, 0]], tf.float32)
        return loss + tf.ensure_shape(nothing, [])

    def _note(self, version, ids):
        with open(os.path.join(self.used, str(os.getpid())), "a") as file:
            for number in ids[ids >= 0]:
                file.write(f"{version} {number}\n")
        return np.float32(0)

    def create_metrics(self, mode, outputs, labels):
        right = tf.equal(tf.argmax(outputs, 1), labels[:, 1])
        accuracy = tf.reduce_mean(tf.cast(right, tf.float32))
        if mode == Mode.TRAINING:
            return {"accuracy": accuracy}
        top = keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")
        top.update_state(labels[:, 1], outputs)
        return {"accuracy": accuracy, "top": top}


class Dense(Digits):
    """Everything about the optimizer and the layers' own losses that is no randomness."""

    def create_model(self):
        def kernel(seed):
            return keras.initializers.GlorotUniform(seed)

        image = keras.Input((8, 8), name="image")
        x = keras.layers.Flatten()(image)
        x = keras.layers.Dense(
            32,
            "relu",
            kernel_initializer=kernel(1),
            kernel_regularizer=keras.regularizers.L2(1e-3),
            name="hidden",
        )(x)
        logits = keras.layers.Dense(10, kernel_initializer=kernel(2), name="logits")(x)
        return keras.Model({"image": image}, logits)

    def create_optimizer(self, lr=0.003):
        rate = keras.optimizers.schedules.ExponentialDecay(lr, decay_steps=20, decay_rate=0.8)
        self.optimizer = keras.optimizers.Adam(rate, clipnorm=0.5)
        return self.optimizer


class Conv(Digits):
    """Batch statistics and a random layer."""

    def create_model(self):
        image = keras.Input((8, 8), name="image")
        x = keras.layers.Reshape((8, 8, 1))(image)
        x = keras.layers.Conv2D(8, 3, activation="relu")(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.Dropout(0.2)(x)
        x = keras.layers.Flatten()(x)
        return keras.Model(image, keras.layers.Dense(10)(x))


class Embedding(Digits):
    """Gradients of rows only."""

    def create_model(self):
        image = keras.Input((8, 8), name="image")
        levels = keras.layers.Flatten()(image * 16)
        x = keras.layers.Flatten()(keras.layers.Embedding(17, 8)(levels))
        return keras.Model(image, keras.layers.Dense(10)(x))


class Half(Dense):
    """Computes in float16; keeps its weights in float32."""

    def create_model(self):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            return super().create_model()
        finally:
            keras.config.set_dtype_policy("float32")

    def create_optimizer(self, lr=0.01):
        return keras.optimizers.SGD(lr)


class Old(Dense):
    """An optimizer of TensorFlow 1, with slots."""

    def create_optimizer(self, lr=0.01):
        return tf.compat.v1.train.AdamOptimizer(lr)


def plain_loss(outputs, labels):
    """The mean over the batch, a scalar."""
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels[:, 1], logits=outputs)
    )
