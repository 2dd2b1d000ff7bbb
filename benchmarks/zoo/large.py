"""A model whose size, and not its work, is what is measured."""

import keras


def dense(width, layers):
    """Dense layers of `width`, each of which has the square of that in weights."""
    model = keras.Sequential(
        [
            keras.Input((width,)),
            *(keras.layers.Dense(width, activation="relu") for _ in range(layers)),
            keras.layers.Dense(1),
        ]
    )
    model.default_input = lambda dataset: dataset
    model.default_loss = keras.losses.MeanSquaredError()
    model.default_optimizer = lambda: keras.optimizers.Adam(1e-4)
    return model
