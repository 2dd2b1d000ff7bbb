"""What a step trains on, and what weights come of it, does not depend on who is there."""

import collections
import hashlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.jobs import support

STEPS = 100
BATCH = 24


# ---- one training, with 1, 2 and 3 workers ----------------------------------------------------


@pytest.fixture(scope="module")
def trainings(train, digits, tmp_path_factory):
    """By the number of workers: the output, and which records each step used."""
    made = {}
    for workers in (1, 2, 3):
        directory = tmp_path_factory.mktemp("dense")
        (directory / "used").mkdir()
        output = train(
            "digits.Dense",
            digits.train,
            directory / "output",
            f"--params=used={str(directory / 'used')!r}",
            f"--num_workers={workers}",
            f"--batch_size={BATCH}",
            "--epochs=100",
            f"--max_steps={STEPS}",
            f"--eval_data={digits.test}",
            "--eval_every_steps=40",
            "--log_every_steps=1",
            "--slice_records=20",
        )
        files = list((directory / "used").iterdir())
        assert len(files) == workers
        made[workers] = output, used(files)
    return made


def used(files):
    """The records of each version, in any order."""
    steps = collections.defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            version, number = map(int, line.split())
            steps[version].append(number)
    return [sorted(steps[version]) for version in range(len(steps))]


@pytest.fixture(scope="module")
def by_hand(trainings, digits):
    """A Keras model that was trained on the very same batches in a loop written out."""
    spec = support.zoo_module("digits").Dense()
    model, optimizer = spec.create_model(), spec.create_optimizer()
    for numbers in trainings[1][1]:
        labels = np.stack([numbers, digits.labels[numbers]], axis=1)
        with tf.GradientTape() as tape:
            outputs = model({"image": digits.images[numbers] / 16}, training=True)
            loss = tf.reduce_mean(spec.create_loss(outputs, labels)) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
    return model


def test_a_step_uses_the_same_records_with_1_2_and_3_workers(trainings):
    steps = trainings[1][1]
    assert len(steps) == STEPS
    assert trainings[2][1] == steps
    assert trainings[3][1] == steps


def test_each_epoch_uses_each_record_once_and_ends_at_a_step(trainings, digits):
    epochs, epoch = [], []
    for step in trainings[1][1]:
        epoch += step
        if len(epoch) == len(digits.train_ids):
            epochs.append(epoch)
            epoch = []
    assert len(epochs) == STEPS * BATCH // len(digits.train_ids) - 1
    assert all(sorted(each) == list(digits.train_ids) for each in epochs)
    assert epochs[0] != epochs[1]
    # The last epoch was cut off by max_steps.
    assert len(set(epoch)) == len(epoch)


def test_steps_have_the_size_asked_until_streams_run_out(trainings):
    sizes = [len(step) for step in trainings[1][1]]
    assert set(sizes[:10]) == {BATCH}
    assert all(1 <= size <= BATCH for size in sizes)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weights_are_those_of_a_plain_keras_loop_over_the_same_batches(trainings, by_hand, workers):
    found = support.weights(trainings[workers][0])
    for variable in by_hand.trainable_variables:
        np.testing.assert_allclose(found[variable.path], variable, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_come_to_the_same_weights_as_one(trainings, workers):
    one, several = support.weights(trainings[1][0]), support.weights(trainings[workers][0])
    assert one.keys() == several.keys()
    for name in one:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-4, atol=1e-6)


def test_evaluation_comes_every_so_many_steps_and_at_the_end(trainings):
    for output, _ in trainings.values():
        versions = [line["version"] for line in support.history(output, "eval")]
        assert versions == [40, 80, STEPS]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_evaluation_is_that_of_keras_on_the_whole_set(trainings, by_hand, digits, workers):
    last = support.history(trainings[workers][0], "eval")[-1]
    ids = list(digits.test_ids)
    outputs = by_hand({"image": digits.images[ids] / 16})
    labels = digits.labels[ids]
    loss = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
    top = keras.metrics.SparseTopKCategoricalAccuracy(3)
    top.update_state(labels, outputs)
    assert last["elements"] == len(ids)
    assert last["loss"] == pytest.approx(np.mean(loss) + float(sum(by_hand.losses)), rel=1e-4)
    assert last["accuracy"] == pytest.approx(np.mean(np.argmax(outputs, 1) == labels))
    assert last["top"] == pytest.approx(float(top.result()))


def test_the_history_has_each_step_with_its_learning_rate(trainings):
    for output, steps in trainings.values():
        lines = support.history(output, "train")
        assert [line["version"] for line in lines] == list(range(1, STEPS + 1))
        assert [line["elements"] for line in lines] == [len(step) for step in steps]
        assert lines[-1]["learning_rate"] == pytest.approx(0.003 * 0.8 ** (STEPS / 20), rel=1e-5)


# ---- bit for bit ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Dense", "Conv", "Embedding"])
def test_reproducible_weights_have_one_hash_with_1_2_and_3_workers(train, digits, tmp_path, model):
    hashes = set()
    for workers in (1, 2, 3):
        output = train(
            f"digits.{model}",
            digits.train,
            tmp_path / str(workers),
            f"--num_workers={workers}",
            "--reproducible",
            "--epochs=2",
            "--batch_size=50",
        )
        content = (output / "parameters.safetensors").read_bytes()
        hashes.add(hashlib.sha256(content).hexdigest())
    assert len(hashes) == 1


def test_batch_statistics_agree_in_quality_however_many_workers(train, digits, tmp_path):
    accuracy, statistics = {}, {}
    for workers in (1, 2):
        output = train(
            "digits.Conv",
            digits.train,
            tmp_path / str(workers),
            f"--num_workers={workers}",
            "--epochs=12",
            "--batch_size=32",
            f"--eval_data={digits.test}",
            "--eval_every_steps=1000",
        )
        accuracy[workers] = support.history(output, "eval")[-1]["accuracy"]
        statistics[workers] = [
            value for name, value in support.weights(output).items() if "moving" in name
        ]
    assert min(accuracy.values()) > 0.85
    assert abs(accuracy[1] - accuracy[2]) < 0.05
    for one, two in zip(statistics[1], statistics[2], strict=True):
        np.testing.assert_allclose(one, two, rtol=0.3, atol=0.3)


# ---- weights that count -----------------------------------------------------------------------


def counts(output):
    """How often each record was used, if all steps had 16 elements."""
    (value,) = support.weights(output).values()
    return value[:, 0]


def test_each_record_is_counted_once_an_epoch(train, numbered, tmp_path):
    output = train(
        "counting.Counting",
        numbered(320),
        tmp_path / "output",
        "--params=records=320",
        "--num_workers=3",
        "--batch_size=16",
        "--epochs=3",
        "--slice_records=7",
    )
    np.testing.assert_array_equal(counts(output), np.full(320, 3.0))


def test_a_single_record_is_enough_for_two_workers(train, numbered, tmp_path):
    output = train(
        "counting.Counting",
        numbered(1),
        tmp_path / "output",
        "--params=learning_rate=1.0",
        "--num_workers=2",
        "--epochs=3",
    )
    np.testing.assert_array_equal(counts(output), [3.0])
    assert [line["steps"] for line in support.history(output, "train")] == [1, 1, 1]


def test_fewer_records_and_smaller_batches_than_streams(train, numbered, tmp_path):
    output = train(
        "counting.Counting",
        numbered(5),
        tmp_path / "output",
        "--params=records=5, lr=1.0",
        "--num_workers=2",
        "--batch_size=1",
        "--epochs=2",
        "--reproducible",
        "--log_every_steps=1",
    )
    np.testing.assert_array_equal(counts(output), np.full(5, 2.0))
    assert [line["elements"] for line in support.history(output, "train")] == [1] * 10


def test_slices_without_elements_and_a_last_batch_of_one(train, numbered, tmp_path):
    output = train(
        "counting.Counting",
        numbered(64),
        tmp_path / "output",
        "--params=records=64, without=(8, 39)",
        "--streams=1",
        "--batch_size=16",
        "--slice_records=8",
        "--epochs=2",
        "--log_every_steps=1",
    )
    sizes = [line["elements"] for line in support.history(output, "train")]
    assert sizes == [16, 16, 1] * 2
    found = counts(output)
    assert not found[8:39].any()
    # The record of the last batch weighs 16 times as much.
    kept = np.concatenate([found[:8], found[39:]])
    assert sorted(set(kept.tolist())) in ([2.0, 17.0], [2.0, 32.0])
    assert kept.sum() == 2 * (32 + 16)


def test_a_step_whose_loss_is_not_a_number_can_be_left_out(run, numbered, tmp_path):
    ended = run(
        "train",
        f"--model_zoo={support.ZOO}",
        "--model_def=counting.Counting",
        f"--data={numbered(64)}",
        f"--output={tmp_path / 'output'}",
        "--params=records=64, bad=40",
        "--num_workers=2",
        "--batch_size=16",
        "--nan_loss=skip",
    )
    assert ended.status == 0, ended.err
    (note,) = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert "loss: expected a finite number; got nan at step " in note
    assert f"{64}.recordio, records " in note
    assert note.endswith("The step was skipped.")
    found = counts(tmp_path / "output")
    assert found[40] == 0
    assert sorted(found.tolist()) == [0.0] * 16 + [1.0] * 48


# ---- models and optimizers, against Keras itself ----------------------------------------------


def full_batches(digits, module, name, epochs):
    """The model after full-batch steps in a loop written out."""
    spec = getattr(support.zoo_module(module), name)()
    model, optimizer = spec.create_model(), spec.create_optimizer()
    ids = list(digits.train_ids)
    labels = np.stack([ids, digits.labels[ids]], axis=1)
    variables = model.trainable_variables
    for _ in range(epochs):
        with tf.GradientTape() as tape:
            outputs = model({"image": digits.images[ids] / 16}, training=True)
            added = sum(tf.cast(loss, tf.float32) for loss in model.losses)
            loss = tf.reduce_mean(spec.create_loss(outputs, labels)) + added
        gradients = tape.gradient(loss, variables)
        if isinstance(optimizer, keras.optimizers.Optimizer):
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply_gradients(zip(gradients, [v.value for v in variables], strict=True))
    return model


def test_an_optimizer_of_tensorflow_1_keeps_its_slots_in_step(train, digits, tmp_path):
    output = train(
        "digits.Old",
        digits.train,
        tmp_path / "output",
        "--num_workers=2",
        "--batch_size=512",
        "--epochs=10",
    )
    expected = full_batches(digits, "digits", "Old", 10)
    found = support.weights(output)
    for variable in expected.trainable_variables:
        np.testing.assert_allclose(found[variable.path], variable, rtol=1e-3, atol=1e-5)


def test_mixed_precision_scales_the_loss_and_trains_float32_weights(train, digits, tmp_path):
    output = train(
        "digits.Half", digits.train, tmp_path / "output", "--batch_size=512", "--epochs=10"
    )
    expected = full_batches(digits, "digits", "Half", 10)
    found = support.weights(output)
    for variable in expected.trainable_variables:
        assert found[variable.path].dtype == np.float32
        np.testing.assert_allclose(found[variable.path], variable, rtol=0.01, atol=2e-3)


def test_several_inputs_outputs_and_sample_weights_train_as_with_fit(train, numbered, tmp_path):
    output = train(
        "several.model", numbered(51), tmp_path / "output", "--batch_size=512", "--epochs=8"
    )
    zoo = support.zoo_module("several")
    expected = zoo.model()
    batch = tf.data.Dataset.from_tensors(zoo.elements(tf.range(51, dtype=tf.int64)))
    expected.fit(batch, epochs=8, shuffle=False, verbose=0)
    found = support.weights(output)
    for variable in expected.trainable_variables:
        np.testing.assert_allclose(found[variable.path], variable, rtol=1e-4, atol=1e-6)
    first, last = support.history(output, "train")[::7]
    assert math.isfinite(first["loss"])
    assert last["loss"] < first["loss"]
