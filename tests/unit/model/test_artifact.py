"""A trained model is whole or not there, and whoever reads it gets what was trained."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from elasticdl import config as configs
from elasticdl.errors import UserError
from elasticdl.model import artifact, saving, spec, trained
from elasticdl.wire import elasticdl_pb2 as pb

ZOO = str(pathlib.Path(__file__).parent / "zoos" / "saved")
SAMPLE = ({"x": tf.TensorSpec([None, 2])}, tf.TensorSpec([None, 1]))
X = np.random.default_rng(0).random((4, 2), np.float32)


def trained_definition(model_def="nets.functional", *, sample=SAMPLE, **fields):
    """A definition whose model has weights that no initializer makes."""
    source = spec.ModelSource(ZOO, model_def, **fields)
    definition = spec.load(source)
    definition.build(definition.inputs(sample))
    generator = np.random.default_rng(7)
    for variable in definition.model.variables:
        if "seed_generator" not in variable.path:
            variable.assign(generator.random(variable.shape))
    return definition, source


def written(directory, model_def="nets.functional", *, sample=SAMPLE, overwrite=False, **fields):
    """Writes and publishes a trained model at `directory`; its definition."""
    params_format = fields.pop("params_format", "safetensors")
    definition, source = trained_definition(model_def, sample=sample, **fields)
    aside = directory.with_name(directory.name + ".work")
    aside.mkdir()
    artifact.write(
        aside,
        definition=definition,
        source=source,
        config=configs.JobConfig(
            kind="train",
            model_def=model_def,
            data="data",
            output=str(directory),
            job_name="a-job",
            params_format=params_format,
        ),
        version=42,
        sample_spec=sample,
        metrics={"accuracy": 0.5, "per_class": [0.25, 0.75]},
    )
    directory.mkdir(exist_ok=True)
    artifact.publish(aside, directory, overwrite)
    aside.rmdir()
    return definition


def refused(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is in it ----------------------------------------------------------------------------


def test_the_message_has_the_documents_fields_and_what_reading_needs(tmp_path):
    written(
        tmp_path / "out",
        params={"units": 5, "learning_rate": 0.5},
        loss="mae",
        optimizer="adam",
    )
    message = artifact.read(tmp_path / "out")
    assert message.docker_commit_id == ""
    assert message.model_def == "nets.functional"
    assert message.model_def_params == "units=5, learning_rate=0.5"
    assert message.params_filename == "parameters.safetensors"
    assert (message.input_function, message.loss, message.optimizer) == ("", "mae", "adam")
    assert (message.version, message.job_name) == (42, "a-job")
    assert dict(message.metrics) == {"accuracy": 0.5, "per_class_0": 0.25, "per_class_1": 0.75}
    assert artifact.source_of(tmp_path / "out") == spec.ModelSource(
        str(tmp_path / "out" / "zoo"),
        "nets.functional",
        loss="mae",
        optimizer="adam",
        params={"units": 5, "learning_rate": 0.5},
    )


def test_the_first_seven_fields_are_numbered_as_in_the_document():
    names = [field.name for field in pb.TrainedModel.DESCRIPTOR.fields if field.number <= 7]
    assert names == [
        "docker_commit_id", "model_def", "model_def_params", "params_filename",
        "input_function", "loss", "optimizer",
    ]  # fmt: skip


def test_the_json_says_the_same_readably(tmp_path):
    written(tmp_path / "out")
    readable = json.loads((tmp_path / "out" / "trained_model.json").read_text())
    message = artifact.read(tmp_path / "out")
    assert readable["version"] == 42
    assert readable["params_sha256"] == message.params_sha256.hex()
    assert readable["element_spec"] == {
        "tensor": {"dtype": "float32", "name": "x", "shape": [None, 2]}
    }
    assert list(readable)[:3] == ["docker_commit_id", "model_def", "model_def_params"]


@pytest.mark.parametrize("params_format", ["safetensors", "proto"])
def test_parameters_come_back_as_they_were_in_either_format(tmp_path, params_format):
    definition = written(tmp_path / "out", params_format=params_format)
    read = artifact.parameters(tmp_path / "out")
    values = definition.values()
    assert read.keys() == values.keys()
    assert {"dense/kernel", "batch_normalization/moving_mean", "y/bias"} <= read.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert read[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("params_format", ["safetensors", "proto"])
def test_every_dtype_and_shape_can_be_stored(tmp_path, params_format):
    values = {
        name: np.array([[0, 1], [2, 3]]).astype(tf.as_dtype(name).as_numpy_dtype)
        for name in (
            "float16", "bfloat16", "float32", "float64", "bool",
            "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        )
    }  # fmt: skip
    values["scalar"] = np.float32(3.0).reshape(())
    values["empty"] = np.zeros((0, 4), np.float32)
    values["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    digest = artifact.write_parameters(tmp_path, values, params_format, 1)
    (tmp_path / "trained_model.pb").write_bytes(
        pb.TrainedModel(
            model_def="m.M",
            params_filename=artifact.PARAMETERS[params_format],
            params_sha256=digest,
        ).SerializeToString()
    )
    read = artifact.parameters(tmp_path)
    for name, value in values.items():
        assert read[name].dtype == value.dtype, name
        np.testing.assert_array_equal(read[name], value)


def test_proto_is_the_documents_model_message(tmp_path):
    definition = written(tmp_path / "out", params_format="proto")
    model = pb.Model.FromString((tmp_path / "out" / "parameters.pb").read_bytes())
    assert model.version == 42
    kernel = model.param["y/kernel"]
    assert list(kernel.dim) == [3, 1]
    assert kernel.content == definition.values()["y/kernel"].astype("<f4").tobytes()


def test_proto_is_refused_above_2_gb(tmp_path):
    # Takes no memory: all entries are the same one.
    large = np.broadcast_to(np.zeros((), np.float32), (600, 1_000_000))
    text = refused(artifact.write_parameters, tmp_path, {"large": large}, "proto", 1)
    assert "got 2.4 GB. Use --params_format=safetensors" in text
    assert list(tmp_path.iterdir()) == []


def test_variables_of_one_path_are_kept_apart(tmp_path):
    definition = written(tmp_path / "out", "nets.SameNames")
    names = set(artifact.parameters(tmp_path / "out"))
    assert {"same_names/twin/kernel", "same_names/twin/kernel:1"} <= names
    x = {"x": X}
    np.testing.assert_array_equal(trained.load(tmp_path / "out")(x), definition.model(x))


# ---- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_def", ["nets.functional", "nets.Subclassed"])
def test_load_gives_the_keras_model_that_was_trained(tmp_path, model_def):
    definition = written(tmp_path / "out", model_def, params={"units": 4})
    x = X if model_def == "nets.functional" else {"x": X}
    expected = definition.model(x)
    for path in (tmp_path / "out", tmp_path / "out" / "trained_model.pb"):
        tf.nest.map_structure(np.testing.assert_array_equal, trained.load(path)(x), expected)


def test_a_plain_python_process_loads_it_from_wherever_it_was_moved(tmp_path):
    definition = written(tmp_path / "out", "nets.Subclassed")
    (tmp_path / "out").rename(tmp_path / "moved")
    check = (
        "import json, sys\n"
        "import elasticdl, tensorflow as tf\n"
        "model = elasticdl.load(sys.argv[1])\n"
        "print(json.dumps(model({'x': tf.constant([[1.0, 2.0]])})['y'].numpy().tolist()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "moved")],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    expected = definition.model({"x": tf.constant([[1.0, 2.0]])})["y"].numpy()
    np.testing.assert_allclose(json.loads(run.stdout), expected, rtol=1e-6)
    assert not list((tmp_path / "moved").rglob("__pycache__"))


def test_inputs_of_any_size_are_built_without_making_one_up(tmp_path):
    sample = ({"image": tf.TensorSpec([None, None, None, 3])}, tf.TensorSpec([None, 1]))
    definition = written(tmp_path / "out", "nets.AnySize", sample=sample)
    x = {"image": tf.random.normal([2, 9, 8, 3], seed=1)}
    np.testing.assert_array_equal(trained.load(tmp_path / "out")(x), definition.model(x))
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    np.testing.assert_allclose(loaded.serve(x), definition.model(x), rtol=1e-5)


def test_low_precision_weights_come_back(tmp_path):
    definition = written(tmp_path / "out", "nets.brain")
    assert {str(v.dtype) for v in artifact.parameters(tmp_path / "out").values()} == {"bfloat16"}
    np.testing.assert_array_equal(
        tf.cast(trained.load(tmp_path / "out")(X), tf.float32),
        tf.cast(definition.model(X), tf.float32),
    )


def test_another_model_than_the_trained_one_is_refused(tmp_path):
    written(tmp_path / "out")
    other, _ = trained_definition(params={"units": 4})
    text = refused(artifact.restore, other, tmp_path / "out")
    assert "expected dense/kernel as float32 (2, 4)" in text
    assert "has float32 (2, 3)" in text
    before = other.values()
    text = refused(other.assign, {"extra": np.zeros(1)}, "there")
    assert "lacks batch_normalization/beta" in text
    assert "has extra besides" in text
    for name, value in other.values().items():
        np.testing.assert_array_equal(value, before[name])


# ---- for others -------------------------------------------------------------------------------


@pytest.mark.parametrize("model_def", ["nets.functional", "nets.Subclassed"])
def test_plain_tensorflow_computes_the_same_from_the_saved_model(tmp_path, model_def):
    definition = written(tmp_path / "out", model_def)
    for size in (1, 4):
        x = X[:size]
        expected = definition.model(x if model_def == "nets.functional" else {"x": x})
        expected = expected["y"] if isinstance(expected, dict) else expected
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", expected)
        loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
        result = loaded.signatures["serving_default"](x=tf.constant(x))
        result = result["y"] if "y" in result else next(iter(result.values()))
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_the_saved_model_needs_neither_this_package_nor_the_zoo(tmp_path):
    written(tmp_path / "out", "nets.Subclassed")
    check = (
        "import sys\n"
        "import tensorflow as tf\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "loaded.signatures['serving_default'](x=tf.constant([[1.0, 2.0]]))\n"
        "assert not {'elasticdl', 'nets'} & {name.split('.')[0] for name in sys.modules}\n"
    )
    subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "out" / "saved_model")],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def test_tuples_and_strings_are_inputs_too(tmp_path):
    sample = (
        (tf.TensorSpec([None, 2]), tf.TensorSpec([None, 1], tf.string)),
        tf.TensorSpec([None, 1]),
    )
    definition = written(tmp_path / "out", "nets.Pairs", sample=sample)
    inputs = (tf.constant(X), tf.constant([["a"], ["bc"], [""], ["d"]]))
    expected = definition.model(inputs)
    np.testing.assert_array_equal(trained.load(tmp_path / "out")(inputs), expected)
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    np.testing.assert_allclose(loaded.serve(inputs), expected, rtol=1e-6)


def test_a_keras_file_is_there_where_keras_loads_it_again(tmp_path):
    import keras

    definition = written(tmp_path / "out")
    message = artifact.read(tmp_path / "out")
    assert (message.keras_file, message.keras_file_problem) == ("model.keras", "")
    doubled = next(type(x) for x in definition.model.layers if type(x).__name__ == "Doubled")
    loaded = keras.models.load_model(
        tmp_path / "out" / "model.keras", custom_objects={"Doubled": doubled}
    )
    np.testing.assert_array_equal(loaded(X), definition.model(X))


def test_otherwise_it_is_said_why_not(tmp_path):
    written(tmp_path / "out", "nets.Subclassed")
    message = artifact.read(tmp_path / "out")
    assert message.keras_file == ""
    assert message.keras_file_problem.startswith("Keras: ")
    assert "\n" not in message.keras_file_problem
    assert not (tmp_path / "out" / "model.keras").exists()


def test_a_model_without_a_saved_model_is_still_a_trained_model(tmp_path):
    definition = written(tmp_path / "out", "nets.NoGraph")
    assert artifact.read(tmp_path / "out").saved_model == ""
    readable = json.loads((tmp_path / "out" / "trained_model.json").read_text())
    assert readable["saved_model_problem"].startswith("SavedModel: ")
    assert "not in a graph" in readable["saved_model_problem"]
    assert not (tmp_path / "out" / "saved_model").exists()
    np.testing.assert_array_equal(
        trained.load(tmp_path / "out")({"x": X}), definition.model({"x": X})
    )


@pytest.mark.parametrize(
    "features",
    [
        tf.TensorSpec([None, 3], tf.int64),
        tf.TensorSpec([None, 3], tf.int64, "named"),
        tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1),
        tf.SparseTensorSpec([None, 9], tf.float32),
        {"a": [tf.TensorSpec([None]), (tf.TensorSpec([None, None], tf.string),)]},
    ],
)
def test_the_types_of_inputs_go_through_json(features):
    from elasticdl.model import elements

    again = elements.from_json(elements.to_json(features))
    assert again == features
    tf.nest.assert_same_structure(again, features)
    for spec_, zero in zip(
        tf.nest.flatten(features), tf.nest.flatten(elements.zeros(features)), strict=True
    ):
        assert spec_.is_compatible_with(zero)


# ---- the zoo ----------------------------------------------------------------------------------


def test_the_zoo_is_copied_without_what_is_not_its_code(tmp_path):
    zoo = tmp_path / "zoo"
    for name in (
        "m.py", "pack/deep/n.py", "vocabulary.txt", "requirements.txt", ".git/config", ".env",
        "pack/__pycache__/n.pyc", "old.pyc", "env/pyvenv.cfg", "env/lib/x.py",
        "train.recordio", "trained/trained_model.pb", "trained/zoo/m.py",
    ):  # fmt: skip
        (zoo / name).parent.mkdir(parents=True, exist_ok=True)
        (zoo / name).write_text(name)
    (tmp_path / "outside.py").write_text("linked")
    (zoo / "link.py").symlink_to(tmp_path / "outside.py")
    (zoo / "gone.py").symlink_to(tmp_path / "nothing.py")
    (zoo / "pack" / "loop").symlink_to(zoo)
    target = zoo / "out" / "zoo"
    target.parent.mkdir()
    artifact.copy_zoo(str(zoo), target)
    copied = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert copied == ["link.py", "m.py", "pack/deep/n.py", "requirements.txt", "vocabulary.txt"]
    assert (target / "link.py").read_text() == "linked"
    assert not (target / "link.py").is_symlink()


def test_a_model_of_elasticdls_zoo_has_no_copy(tmp_path):
    source = spec.ModelSource("", "mnist.MnistElasticDLSpec", params={"image_size": 8})
    definition = spec.load(source)
    sample = ({"image": tf.TensorSpec([None, 8, 8])}, tf.TensorSpec([None, 1], tf.int32))
    definition.build(definition.inputs(sample))
    config = configs.JobConfig(kind="train", model_def="m.M", data="d", output="o", job_name="j")
    artifact.write(
        tmp_path,
        definition=definition,
        source=source,
        config=config,
        version=1,
        sample_spec=sample,
        metrics={},
    )
    assert artifact.read(tmp_path).zoo_directory == ""
    assert artifact.source_of(tmp_path) == source
    assert not (tmp_path / "zoo").exists()


# ---- whole or not at all ----------------------------------------------------------------------


def pieces(directory, **fields):
    """A trained model of small files, not published."""
    directory.mkdir()
    (directory / "zoo").mkdir()
    (directory / "zoo" / "m.py").write_text("code")
    (directory / "parameters.safetensors").write_text("numbers")
    (directory / "trained_model.json").write_text("{}")
    message = pb.TrainedModel(
        model_def="m.M", params_filename="parameters.safetensors", zoo_directory="zoo", **fields
    )
    (directory / "trained_model.pb").write_bytes(message.SerializeToString())
    return directory


def test_a_finished_model_is_replaced_only_on_request_and_nothing_of_it_stays(tmp_path):
    out = tmp_path / "out"
    written(out, params_format="proto")
    (out / "metrics.jsonl").write_text("kept")
    work = pieces(tmp_path / "work", version=2)
    assert "Use --overwrite" in refused(artifact.publish, work, out, False)
    assert artifact.read(out).version == 42
    artifact.publish(work, out, True)
    assert artifact.read(out).version == 2
    assert sorted(entry.name for entry in out.iterdir()) == [
        "metrics.jsonl", "parameters.safetensors", "trained_model.json", "trained_model.pb", "zoo",
    ]  # fmt: skip
    assert [file.name for file in (out / "zoo").rglob("*")] == ["m.py"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_anywhere_an_output_has_a_whole_model_or_none(tmp_path, overwrite):
    """Publishing runs in a process that stops before its nth change, until it gets through."""
    out = tmp_path / "out"
    out.mkdir()
    if overwrite:
        artifact.publish(pieces(tmp_path / "first", version=1), out, False)
    work = pieces(tmp_path / "work", version=2)
    check = (
        "import os, pathlib, shutil, sys\n"
        "from elasticdl.model import artifact\n"
        "left = int(sys.argv[3])\n"
        "def stop(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree'):\n"
        "        left -= 1\n"
        "        if left < 0:\n"
        "            os._exit(9)\n"
        "sys.addaudithook(stop)\n"
        "artifact.publish(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), True)\n"
    )
    stops = 0
    while True:
        run = subprocess.run([sys.executable, "-c", check, work, out, str(stops % 4)], check=False)
        if run.returncode == 0:
            break
        assert run.returncode == 9
        stops += 1
        assert stops < 40
        if (out / "trained_model.pb").exists():
            version = artifact.read(out).version
            assert version == 1
            assert (out / "zoo" / "m.py").read_text() == "code"
    assert stops >= 3
    assert artifact.read(out).version == 2
    assert (out / "parameters.safetensors").exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: None, "which does not exist"),
        (lambda p: p.write_text("x"), "which is a file"),
        (lambda p: p.mkdir(), "which has no files"),
        (lambda p: (p / "logs").mkdir(parents=True), "which has only logs"),
        (lambda p: (p / ".elasticdl").mkdir(parents=True), "where a training is not finished"),
        (
            lambda p: (p.mkdir(), (p / "trained_model.pb").write_bytes(b"\xff\xff")),
            "expected a TrainedModel message",
        ),
        (
            lambda p: (p.mkdir(), (p / "trained_model.pb").write_bytes(b"")),
            "a message without",
        ),
        (
            lambda p: (pieces(p), (p / "parameters.safetensors").unlink()),
            "expected parameters.safetensors in",
        ),
    ],
)
def test_what_is_no_trained_model_is_refused_with_what_it_is(tmp_path, make, expected):
    make(tmp_path / "out")
    assert expected in refused(artifact.read, tmp_path / "out")


def test_a_changed_parameter_file_is_noticed(tmp_path):
    written(tmp_path / "out")
    path = tmp_path / "out" / "parameters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "SHA-256" in refused(artifact.parameters, tmp_path / "out")


def test_paths_are_expanded(tmp_path, monkeypatch):
    pieces(tmp_path / "out", version=3)
    monkeypatch.setenv("HERE", str(tmp_path))
    assert artifact.read("$HERE/out").version == 3


def test_reading_and_publishing_import_no_tensorflow(tmp_path):
    check = (
        "import pathlib, sys\n"
        "from elasticdl.model import artifact\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "(path / 'out').mkdir()\n"
        "artifact.publish(path / 'work', path / 'out', False)\n"
        "artifact.source_of(path / 'out')\n"
        "assert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"
    )
    pieces(tmp_path / "work")
    subprocess.run([sys.executable, "-c", check, tmp_path], check=True)


def test_random_layers_seeds_are_part_of_it():
    definition, _ = trained_definition()
    assert any("seed_generator_state" in name for name in saving.variables(definition.model))
