"""A small convolutional network for images of handwritten digits."""

from typing import Any

import keras
import tensorflow as tf

from elasticdl.model.mode import Mode
from elasticdl.model.spec import ElasticDLSpec


class MnistElasticDLSpec(ElasticDLSpec):
    """Classifies images by their digit.

    Records are tf.Example with `image`, `image_size` x `image_size` floats from 0 to 255, and
    `label`, an integer.

    Args:
        image_size: rows and columns of an image.
        classes: number of different labels.
        filters: of the two convolutions.
        dropout: share of activations left out in training.
    """

    def __init__(
        self,
        context: dict[str, Any] | None = None,
        image_size: int = 28,
        classes: int = 10,
        filters: tuple[int, int] = (32, 64),
        dropout: float = 0.25,
    ) -> None:
        super().__init__(context=context)
        self._shape = (image_size, image_size)
        self._classes = classes
        self._filters = filters
        self._dropout = dropout

    def create_model(self) -> Any:
        inputs = keras.Input(shape=self._shape, name="image")
        x = keras.layers.Reshape((*self._shape, 1))(inputs)
        x = keras.layers.Conv2D(self._filters[0], kernel_size=(3, 3), activation="relu")(x)
        x = keras.layers.Conv2D(self._filters[1], kernel_size=(3, 3), activation="relu")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.MaxPooling2D(pool_size=(2, 2))(x)
        x = keras.layers.Dropout(self._dropout)(x)
        x = keras.layers.Flatten()(x)
        outputs = keras.layers.Dense(self._classes)(x)
        return keras.Model(inputs=inputs, outputs=outputs, name="mnist_model")

    def create_optimizer(self, lr: float = 0.1) -> Any:
        return tf.compat.v1.train.GradientDescentOptimizer(learning_rate=lr)

    def create_loss(self, outputs: Any = None, labels: Any = None) -> Any:
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels=tf.reshape(labels, [-1]), logits=outputs
            )
        )

    def create_metrics(  # type: ignore[override]  # arguments are passed by name
        self, mode: Mode = Mode.TRAINING, outputs: Any = None, labels: Any = None
    ) -> dict[str, Any]:
        if mode != Mode.EVALUATION:
            return {}
        right = tf.equal(tf.argmax(outputs, 1, output_type=tf.int32), tf.reshape(labels, [-1]))
        return {"accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}

    def create_dataset(self, dataset: Any, mode: Mode) -> Any:
        description = {"image": tf.io.FixedLenFeature(self._shape, tf.float32)}
        if mode != Mode.PREDICTION:
            description["label"] = tf.io.FixedLenFeature([1], tf.int64)

        def parsed(record: Any) -> Any:
            example = tf.io.parse_single_example(record, description)
            features = {"image": example["image"] / 255.0}
            if mode == Mode.PREDICTION:
                return features
            return features, tf.cast(example["label"], tf.int32)

        dataset = dataset.map(parsed)
        return dataset.shuffle(buffer_size=1024) if mode == Mode.TRAINING else dataset
