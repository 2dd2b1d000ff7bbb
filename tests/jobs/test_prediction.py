"""Predictions: a part for each slice, in the input's order, the same whoever computes them."""

import json

import numpy as np
import pytest

import elasticdl
from elasticdl.data import examples, recordio


@pytest.fixture(scope="module")
def trained(train, digits, tmp_path_factory):
    return train(
        "digits.Dense",
        digits.train,
        tmp_path_factory.mktemp("dense") / "model",
        "--epochs=4",
        "--batch_size=32",
    )


@pytest.fixture(scope="module")
def predict(run, trained, digits, tmp_path_factory):
    """Predicts the digits kept for tests; the output."""

    def predict(name, *arguments):
        output = tmp_path_factory.mktemp("predicted") / name
        ended = run(
            "predict",
            f"--data={digits.test}",
            f"--trained_model={trained}",
            f"--output={output}",
            "--batch_size=7",
            "--quiet",
            *arguments,
        )
        assert ended.status == 0, ended.err
        assert (ended.out, ended.err, ended.running) == (f"{output}\n", "", [])
        return output

    return predict


@pytest.fixture(scope="module")
def parts(predict):
    return {
        workers: predict("parts", f"--num_workers={workers}", "--slice_records=50")
        for workers in (1, 2)
    }


def rows(files):
    """The predictions in files of tf.Example, one behind the other."""
    records = [record for file in files for record in recordio.read(file)]
    decoded = [examples.decode(record) for record in records]
    assert all(each.keys() == {"logits"} for each in decoded)
    return np.asarray([each["logits"] for each in decoded])


@pytest.fixture(scope="module")
def expected(trained, digits):
    ids = list(digits.test_ids)
    return np.asarray(elasticdl.load(trained)({"image": digits.images[ids] / 16}))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_slice_has_a_part_with_its_rows_in_order(parts, expected, workers):
    files = sorted(parts[workers].iterdir())
    # 170 and 30 records, in slices of at most 50 that lie in one file each.
    assert [file.name for file in files] == [f"part-{n:05d}-of-00005.recordio" for n in range(5)]
    assert [len(recordio.Reader(file)) for file in files] == [50, 50, 50, 20, 30]
    np.testing.assert_allclose(rows(files), expected, rtol=1e-5, atol=1e-5)


def test_two_workers_write_what_one_does(parts):
    for one, two in zip(sorted(parts[1].iterdir()), sorted(parts[2].iterdir()), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_an_output_that_names_a_file_is_one(predict, parts):
    output = predict("all.recordio", "--slice_records=50", "--num_workers=2")
    assert output.is_file()
    assert [entry.name for entry in output.parent.iterdir()] == ["all.recordio"]
    np.testing.assert_array_equal(rows([output]), rows(sorted(parts[1].iterdir())))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_evaluation_prints_and_writes_the_metrics_of_the_whole_set(
    run, trained, digits, expected, tmp_path, workers
):
    ended = run(
        "evaluate",
        f"--data={digits.test}",
        f"--trained_model={trained}",
        f"--output={tmp_path / 'metrics'}",
        f"--num_workers={workers}",
        "--batch_size=33",
    )
    assert ended.status == 0, ended.err
    assert ended.running == []
    written = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert [entry.name for entry in (tmp_path / "metrics").iterdir()] == ["metrics.json"]
    labels = digits.labels[list(digits.test_ids)]
    accuracy = np.mean(np.argmax(expected, 1) == labels)
    top = np.mean(
        [label in row.argsort()[-3:] for row, label in zip(expected, labels, strict=True)]
    )
    assert written == {
        "loss": pytest.approx(loss_of(trained, expected, labels), rel=1e-5),
        "accuracy": pytest.approx(accuracy),
        "top": pytest.approx(top),
    }
    printed = dict(line.split(" ", 1) for line in ended.out.splitlines())
    assert float(printed["accuracy"]) == pytest.approx(accuracy, rel=1e-3)
    assert printed["metrics:"] == str(tmp_path / "metrics")


def loss_of(trained, logits, labels):
    """The mean cross-entropy, and what the layers add."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = log_likelihood[np.arange(len(labels)), labels]
    return -picked.mean() + float(sum(elasticdl.load(trained).losses))


def test_predictions_are_replaced_only_with_overwrite(run, trained, digits, parts):
    before = sorted(entry.name for entry in parts[2].iterdir())
    arguments = (
        "predict",
        f"--data={digits.test}",
        f"--trained_model={trained}",
        f"--output={parts[2]}",
        "--quiet",
    )
    refused = run(*arguments)
    assert refused.status == 2
    assert "already has a result (part-00000-of-00005.recordio)" in refused.err
    assert sorted(entry.name for entry in parts[2].iterdir()) == before
