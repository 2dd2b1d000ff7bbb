"""A plain Keras model with several inputs and outputs, and sample weights."""

import keras
import tensorflow as tf


def model():
    """Predicts a number's parity and its size from two views of it."""
    near = keras.Input((2,), name="near")
    far = keras.Input((1,), name="far")
    x = keras.layers.Concatenate()([near, far])
    made = keras.Model(
        {"near": near, "far": far},
        {
            "odd": keras.layers.Dense(1, "sigmoid", kernel_initializer="ones", name="odd")(x),
            "size": keras.layers.Dense(3, kernel_initializer="ones", name="size")(x),
        },
    )
    made.compile(
        keras.optimizers.SGD(0.125),
        {
            "odd": "binary_crossentropy",
            "size": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"odd": 2.0, "size": 0.5},
    )
    return made


def numbers(dataset, mode):
    return dataset.map(
        lambda record: elements(
            tf.io.parse_single_example(record, {"id": tf.io.FixedLenFeature([], tf.int64)})["id"]
        )
    )


def elements(number):
    """Features, labels and sample weights of a number, or of a vector of them."""
    x = tf.cast(number, tf.float32)[..., None]
    features = {"far": x / 50, "near": tf.concat([tf.sin(x), tf.cos(x)], -1)}
    labels = {"odd": number[..., None] % 2, "size": number // 17}
    weights = tf.where(number % 3 == 0, 2.0, 0.5)
    return features, labels, {"odd": weights, "size": weights}


model.default_input = numbers
