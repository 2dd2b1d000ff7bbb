"""What a training leaves is whole, is read with and without this package, and has one writer."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow.python.summary.summary_iterator import summary_iterator

import elasticdl
from elasticdl.model import artifact
from elasticdl.wire import elasticdl_pb2 as pb
from tests.jobs import support


@pytest.fixture(scope="module")
def trained(train, digits, tmp_path_factory):
    return train(
        "digits.Conv",
        digits.train,
        tmp_path_factory.mktemp("conv") / "deep" / "output",
        "--params=used=''",
        "--epochs=2",
        "--batch_size=100",
        f"--eval_data={digits.test}",
        "--job_name=conv-1",
        "--loss=digits.plain_loss",
    )


@pytest.fixture(scope="module")
def message(trained):
    return pb.TrainedModel.FromString((trained / "trained_model.pb").read_bytes())


def names(directory):
    return {entry.name for entry in directory.iterdir()}


# ---- content ----------------------------------------------------------------------------------


def test_an_output_holds_the_trained_model_and_nothing_of_the_job(trained):
    assert names(trained) == {
        "trained_model.pb",
        "trained_model.json",
        "parameters.safetensors",
        "saved_model",
        "model.keras",
        "zoo",
        "logs",
        "metrics.jsonl",
        "events.jsonl",
    }
    assert names(trained / "logs") == {"train", "eval"}
    assert names(trained / "zoo") == names(support.ZOO) - {"__pycache__"}


def test_the_documents_seven_fields_are_numbers_1_to_7(trained, message):
    numbers = {field.number: value for field, value in message.ListFields() if field.number <= 7}
    assert numbers == {
        2: "digits.Conv",
        3: "used=''",
        4: "parameters.safetensors",
        6: "digits.plain_loss",
    }
    assert [field.name for field in message.DESCRIPTOR.fields][:7] == [
        "docker_commit_id",
        "model_def",
        "model_def_params",
        "params_filename",
        "input_function",
        "loss",
        "optimizer",
    ]


def test_the_json_beside_it_says_the_same(trained, message):
    readable = json.loads((trained / "trained_model.json").read_text())
    for name in ("model_def", "model_def_params", "params_filename", "loss", "job_name"):
        assert readable[name] == getattr(message, name)
    assert (
        readable["version"] == message.version == support.history(trained, "train")[-1]["version"]
    )
    assert readable["job_name"] == "conv-1"
    last = support.history(trained, "eval")[-1]
    assert readable["metrics"] == {
        name: pytest.approx(last[name]) for name in ("loss", "accuracy", "top")
    }


def test_parameters_stand_under_keras_paths(trained):
    model = elasticdl.load(trained)
    found = support.weights(trained)
    assert found.keys() == {variable.path for variable in model.variables}
    for variable in model.variables:
        np.testing.assert_array_equal(found[variable.path], variable)


def images(digits, count=20):
    return digits.images[:count] / 16


def test_the_saved_model_works_where_elasticdl_is_unknown(trained, digits, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.path[:] = [p for p in sys.path if p != sys.argv[4]]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import numpy as np\n"
        "import tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "np.save(sys.argv[3], model.serve(np.load(sys.argv[2])).numpy())\n"
        "try:\n"
        "    import elasticdl\n"
        "except ImportError:\n"
        "    sys.exit(0)\n"
        "sys.exit('elasticdl can be imported')\n"
    )
    np.save(tmp_path / "images.npy", images(digits))
    root = pathlib.Path(elasticdl.__file__).parents[1]
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [
            sys.executable,
            script,
            trained / "saved_model",
            tmp_path / "images.npy",
            tmp_path / "outputs.npy",
            root,
        ],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    expected = elasticdl.load(trained)(images(digits), training=False)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-5, atol=1e-6)


def test_the_keras_file_is_the_same_model(trained, digits):
    model = tf.keras.models.load_model(trained / "model.keras", compile=False)
    expected = elasticdl.load(trained)(images(digits), training=False)
    np.testing.assert_allclose(model(images(digits)), expected, rtol=1e-5, atol=1e-6)


def test_the_history_is_in_lines_and_in_event_files(trained):
    for kind, curves in (
        ("train", {"loss", "accuracy", "learning_rate"}),
        ("eval", {"loss", "accuracy", "top"}),
    ):
        (file,) = (trained / "logs" / kind).iterdir()
        points = {
            (event.step, value.tag): value.simple_value
            for event in summary_iterator(str(file))
            for value in event.summary.value
        }
        assert {tag for _, tag in points} == curves
        lines = support.history(trained, kind)
        assert {step for step, _ in points} == {line["version"] for line in lines}
        for line in lines:
            for tag in curves:
                assert points[line["version"], tag] == pytest.approx(line[tag])


# ---- one writer -------------------------------------------------------------------------------


@pytest.fixture
def endless(start, numbered):
    """Starts a training that goes on until it is stopped; returns when it has taken a step."""

    def endless(output, *arguments):
        command = start(
            "train",
            f"--model_zoo={support.ZOO}",
            "--model_def=broken.Fine",
            f"--data={numbered(64)}",
            f"--output={output}",
            "--epochs=100000000",
            "--checkpoint_every=0",
            "--job_name=endless",
            "--json",
            *arguments,
        )
        command.until_running()
        return command

    return endless


def master_of(command):
    (master,) = [
        process for process in command.processes() if "elasticdl.master" in process.cmdline()
    ]
    return master


def test_an_output_has_one_writer_and_a_dead_owners_claim_is_taken_over(
    run, train, endless, numbered, tmp_path
):
    output = tmp_path / "output"
    first = endless(output)
    master = master_of(first)
    second = run(
        "train",
        f"--model_zoo={support.ZOO}",
        "--model_def=broken.Fine",
        f"--data={numbered(64)}",
        f"--output={output}",
        "--overwrite",
        "--quiet",
    )
    assert second.status == 2
    assert second.err == (
        f"error: output: {output} is being written by job endless (process {master.pid} on "
        f"{os.uname().nodename}). Wait for it, stop it, or choose another --output.\n"
    )
    assert master.is_running()

    everybody = first.processes()
    for process in everybody:
        process.kill()
    first.end()
    _, alive = psutil.wait_procs(everybody, timeout=30)
    assert alive == []
    assert not (output / "trained_model.pb").exists()

    train("broken.Fine", numbered(64), output)
    assert ".elasticdl" not in names(output)


def test_a_cancelled_job_leaves_nothing(endless, tmp_path):
    command = endless(tmp_path / "deep" / "output", "--num_workers=2")
    command.process.terminate()
    ended = command.end()
    assert ended.status == 143
    assert ended.running == []
    assert names(tmp_path) == set()


def test_a_model_is_replaced_with_overwrite_and_survives_a_job_that_fails(
    run, train, numbered, tmp_path
):
    output = train("broken.Fine", numbered(64), tmp_path / "output", "--params_format=proto")
    (output / "notes.txt").write_text("mine")
    before = (output / "trained_model.pb").read_bytes()
    failing = run(
        "train",
        f"--model_zoo={support.ZOO}",
        "--model_def=broken.Diverges",
        f"--data={numbered(64)}",
        f"--output={output}",
        "--overwrite",
        "--quiet",
    )
    assert failing.status == 2
    assert (output / "trained_model.pb").read_bytes() == before
    assert artifact.parameters(output)["dense/kernel"].shape == (1, 1)

    model = pb.Model.FromString((output / "parameters.pb").read_bytes())
    assert model.version == 1
    assert {name: list(tensor.dim) for name, tensor in model.param.items()} == {
        "dense/kernel": [1, 1],
        "dense/bias": [1],
    }

    train("broken.Fine", numbered(64), output, "--overwrite", "--params=units=2")
    assert (output / "notes.txt").read_text() == "mine"
    assert "parameters.pb" not in names(output)
    assert artifact.parameters(output)["dense/kernel"].shape == (1, 2)
