"""The models of the benchmarks, as plain Keras models with their own input functions."""

import keras
import tensorflow as tf


def _attached(model, parse, loss, rate):
    model.default_input = lambda dataset: dataset.map(
        parse, num_parallel_calls=tf.data.AUTOTUNE
    ).shuffle(4096)
    model.default_loss = loss
    model.default_optimizer = lambda: keras.optimizers.Adam(rate)
    return model


def _parse_dense(record):
    parsed = tf.io.parse_single_example(
        record,
        {"x": tf.io.FixedLenFeature([32], tf.float32), "y": tf.io.FixedLenFeature([1], tf.float32)},
    )
    return parsed["x"], parsed["y"]


def dense():
    """A small dense model on 32 numbers."""
    layers = [keras.Input((32,))]
    layers += [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    return _attached(model, _parse_dense, keras.losses.MeanSquaredError(), 1e-3)


def _parse_image(record):
    parsed = tf.io.parse_single_example(
        record,
        {
            "image": tf.io.FixedLenFeature([28, 28, 1], tf.float32),
            "label": tf.io.FixedLenFeature([1], tf.int64),
        },
    )
    return parsed["image"], parsed["label"]


def convolutional():
    """The convolutional model of the first Keras tutorials, on 28 by 28 images."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return _attached(model, _parse_image, loss, 1e-3)


def _parse_wide(record):
    parsed = tf.io.parse_single_example(
        record,
        {
            "ids": tf.io.FixedLenFeature([16], tf.int64),
            "x": tf.io.FixedLenFeature([8], tf.float32),
            "y": tf.io.FixedLenFeature([1], tf.float32),
        },
    )
    return {"ids": parsed["ids"], "x": parsed["x"]}, parsed["y"]


def wide():
    """Sixteen categories of 20,000 values in an embedding of eight, beside eight numbers."""
    ids = keras.Input((16,), dtype="int64", name="ids")
    numbers = keras.Input((8,), name="x")
    deep = keras.layers.Flatten()(keras.layers.Embedding(20_000, 8)(ids))
    deep = keras.layers.Concatenate()([deep, numbers])
    for _ in range(2):
        deep = keras.layers.Dense(128, activation="relu")(deep)
    model = keras.Model({"ids": ids, "x": numbers}, keras.layers.Dense(1)(deep))
    return _attached(model, _parse_wide, keras.losses.BinaryCrossentropy(from_logits=True), 1e-3)
