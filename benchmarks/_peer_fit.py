"""One process of a peer: Keras's own `fit`, alone or as one of TensorFlow's multi-worker processes.

It is started by `benchmarks.training`; each line that it prints is the records per second of an
epoch.
"""

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model")
    arguments.add_argument("files", nargs="+")
    arguments.add_argument("--records", type=int, required=True)
    arguments.add_argument("--batch_size", type=int, required=True)
    arguments.add_argument("--epochs", type=int, required=True)
    arguments.add_argument("--together", action="store_true", help="TF_CONFIG says with whom.")
    given = arguments.parse_args()

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    if given.together:
        # Keras 3 has no multi-worker `fit` on TensorFlow: its predecessor has.
        import tf_keras

        sys.modules["keras"] = tf_keras
        # Two processes on two cores, as with two workers.
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.get_strategy()
    import keras

    sys.path.insert(0, str(Path(__file__).parent / "zoo"))
    import models

    with strategy.scope():
        model = getattr(models, given.model)()
        model.compile(model.default_optimizer(), model.default_loss)
    dataset = model.default_input(tf.data.TFRecordDataset(given.files))
    dataset = dataset.batch(given.batch_size, drop_remainder=given.together)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    if given.together:
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.FILE
        )
        dataset = dataset.with_options(options)

    class Rates(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            rate = given.records / (time.perf_counter() - self.began)
            sys.stdout.write(f"{rate}\n")
            sys.stdout.flush()

    steps = given.records // given.batch_size if given.together else None
    if given.together:
        dataset = dataset.repeat()
    model.fit(dataset, epochs=given.epochs, steps_per_epoch=steps, verbose=0, callbacks=[Rates()])


if __name__ == "__main__":
    main()
