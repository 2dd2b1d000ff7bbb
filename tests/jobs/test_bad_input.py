"""What people get wrong is told in one line: where, what was expected, what came, what to do."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

import elasticdl
from tests.jobs import support

PACKAGE = str(pathlib.Path(elasticdl.__file__).parent)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results" / "output"


@pytest.fixture
def refused(run, numbered, output):
    """Runs a training that cannot be; the line that says why, and the traceback before it.

    What is the same for all of them is checked: exit status 2, one line, nothing left behind,
    nothing left running.
    """

    def refused(*arguments, kind="train", replaced=(), **options):
        settings = {
            "train": {
                "model_zoo": support.ZOO,
                "model_def": "broken.Fine",
                "data": numbered(64),
                "output": output,
            },
            "predict": {"data": numbered(64), "output": output},
            "evaluate": {"data": numbered(64)},
        }[kind] | dict(replaced)
        flags = [f"--{name}={value}" for name, value in settings.items()]
        ended = run(kind, *flags, *arguments, "--quiet", **options)
        assert ended.status == 2, ended.err
        assert ended.out == ""
        assert ended.running == []
        if pathlib.Path(settings.get("output", output)) == output:
            assert not output.parent.exists()
        *trace, line = ended.err.splitlines()
        assert line.startswith("error: ")
        assert len(line) < 700
        return line.removeprefix("error: "), trace

    return refused


@pytest.fixture
def told(refused):
    """Like `refused`, where no code of the user's is at fault: the line is all there is."""

    def told(*arguments, **options):
        line, trace = refused(*arguments, **options)
        assert trace == []
        return line

    return told


@pytest.fixture
def raised(refused):
    """Like `refused`, where the user's code raised: the line, and the traceback of that code."""

    def raised(model_def, *arguments, **options):
        line, trace = refused(*arguments, replaced={"model_def": model_def}, **options)
        assert trace[0] == "Traceback (most recent call last):"
        text = "\n".join(trace)
        for theirs in (PACKAGE, "site-packages", "autograph", "in user code"):
            assert theirs not in text
        return line, text

    return raised


# ---- the data ---------------------------------------------------------------------------------


def test_no_file_matches_data(told, tmp_path):
    (tmp_path / "there.csv").touch()
    line = told(replaced={"data": f"{tmp_path}/*.recordio"})
    assert line == (
        "data: expected a file, a directory with *.recordio files, or a glob; got "
        f"'{tmp_path}/*.recordio', which matches no file: {tmp_path} holds there.csv."
    )


def test_no_file_matches_eval_data(told, tmp_path):
    line = told(f"--eval_data={tmp_path}/none.recordio")
    assert line.startswith("eval_data: expected a file, a directory")


def test_zero_records(told, numbered):
    line = told(replaced={"data": numbered(0)})
    assert line.startswith("data: expected at least one record; got none in the 1 file of ")


def test_a_damaged_head_of_a_file(told, tmp_path, numbered):
    path = tmp_path / "damaged.recordio"
    content = bytearray(numbered(64).read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    line = told(replaced={"data": path})
    assert line.startswith(f"{path}: at byte 0: ")


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_inside_a_file_is_found_when_it_is_read(told, tmp_path, numbered, workers):
    path = tmp_path / "damaged.recordio"
    content = bytearray(numbered(2000).read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    line = told(f"--num_workers={workers}", replaced={"data": path})
    assert line.startswith(f"{path}: at byte ")


def test_data_that_is_no_recordio(told, tmp_path):
    path = tmp_path / "table.recordio"
    path.write_text("a,b\n1,2\n")
    line = told(replaced={"data": path})
    assert line.startswith(f"{path}: at byte 0: ")


# ---- the zoo ----------------------------------------------------------------------------------


def test_no_zoo(told, tmp_path):
    line = told(replaced={"model_zoo": tmp_path / "nowhere"})
    assert line.startswith("model_zoo: expected a directory; got ")
    assert str(tmp_path / "nowhere") in line


def test_no_such_module_in_the_zoo(told):
    line = told(replaced={"model_def": "brokn.Fine"})
    assert "brokn" in line
    assert "broken" in line


def test_no_such_class_in_the_module(told):
    line = told(replaced={"model_def": "broken.Fnie"})
    assert "Fnie" in line
    assert "Fine" in line


def test_a_name_without_a_module(told):
    line = told(replaced={"model_def": "Fine"})
    assert line.startswith("Fine: expected module.name as in fintech.MyKerasModel")


def test_a_class_that_is_none_of_the_forms(told):
    line = told(replaced={"model_def": "broken.NoForm"})
    assert line == (
        "broken.NoForm: expected an elasticdl.ElasticDLSpec subclass, a keras.Model subclass, or "
        "a function that returns a keras.Model; got the class NoForm(object)."
    )


def test_a_spec_without_a_method(told):
    line = told(replaced={"model_def": "broken.Unfinished"})
    assert "create_dataset, create_loss are missing" in line


def test_something_else_instead_of_a_model(told):
    line = told(replaced={"model_def": "broken.ModelOfNothing"})
    assert line.startswith("create_model of broken.ModelOfNothing: expected a keras.Model; got ")


def test_params_that_the_model_lacks(told):
    line = told("--params=unit=3")
    assert "has no parameter 'unit'; it has units, learning_rate." in line
    assert line.endswith("Did you mean units?")


# ---- the user's own code ----------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path):
    directory = tmp_path / "zoo"
    directory.mkdir()
    return directory


def test_an_import_error_in_the_users_code(refused, zoo):
    (zoo / "fintech.py").write_text("import helpers\n\nclass Model:\n    pass\n")
    (zoo / "helpers.py").write_text("import nump as np\n")
    line, trace = refused(replaced={"model_zoo": zoo, "model_def": "fintech.Model"})
    assert line.endswith("ModuleNotFoundError: No module named 'nump'")
    assert trace == [
        "Traceback (most recent call last):",
        f'  File "{zoo}/fintech.py", line 1, in <module>',
        "    import helpers",
        f'  File "{zoo}/helpers.py", line 1, in <module>',
        "    import nump as np",
        "ModuleNotFoundError: No module named 'nump'",
    ]


def test_a_syntax_error_in_the_users_code(refused, zoo):
    (zoo / "fintech.py").write_text("class Model:\n    def (self):\n        pass\n")
    line, trace = refused(replaced={"model_zoo": zoo, "model_def": "fintech.Model"})
    assert "SyntaxError" in line
    assert trace[0] == f'  File "{zoo}/fintech.py", line 2'


def test_a_loss_that_raises(raised):
    line, trace = raised("broken.LossRaises")
    assert line.startswith("create_loss of broken.LossRaises: ")
    assert 'return self.distance(outputs, labels["missing"])' in trace


def test_an_input_function_that_raises(raised):
    line, trace = raised("broken.DatasetRaises")
    assert line == (
        "create_dataset of broken.DatasetRaises: LookupError: the vocabulary is not there"
    )
    assert trace.endswith("LookupError: the vocabulary is not there")


def test_an_input_function_that_fails_on_one_record(told, numbered):
    line = told("--slice_records=8", replaced={"model_def": "broken.RecordRaises"})
    assert line.startswith("create_dataset: ")
    assert "eleven is not allowed" in line
    (begin, end) = re.findall(rf"\({numbered(64)}, records (\d+) to (\d+)\)\. ", line)[0]
    assert int(begin) <= 11 <= int(end)


def test_a_layer_that_raises(raised):
    line, trace = raised("broken.LayerRaises")
    assert line == (
        "model broken.LayerRaises, called with {id: float32[batch, 1]}: ArithmeticError: this "
        "layer cannot add"
    )
    assert 'raise ArithmeticError("this layer cannot add")' in trace


def test_metrics_that_raise(raised):
    line, trace = raised("broken.MetricsRaise")
    assert line.startswith("create_metrics of broken.MetricsRaise: AttributeError: ")
    assert "outputs.no_such_attribute" in trace


def test_a_model_file_that_exits(raised):
    line, _ = raised("broken.Leaves")
    assert line == "create_model of broken.Leaves: SystemExit: no licence"


# ---- what does not fit together ---------------------------------------------------------------


def test_elements_of_another_shape_than_the_models_input(told):
    line = told(replaced={"model_def": "broken.WrongShape"})
    assert line == (
        "create_dataset of broken.WrongShape: expected elements of shape [1] for the model's "
        "input 'id'; got [3]."
    )


def test_elements_that_the_model_cannot_compute_with(raised):
    line, trace = raised("broken.WrongShapeInside")
    assert line == (
        "model broken.WrongShapeInside, called with {id: float32[batch, 1]}: "
        "InvalidArgumentError: Matrix size-incompatible: In[0]: [1,1], In[1]: [7,1]"
    )
    assert 'return inputs["id"] @ self.matrix' in trace


def test_labels_that_do_not_fit_the_loss(raised):
    line, _ = raised("broken.WrongLabels")
    assert line.startswith("create_loss of broken.WrongLabels: TypeError: ")
    assert "labels" in line


def test_all_elements_filtered_out(told):
    line = told(replaced={"model_def": "broken.Drops"})
    assert line == (
        "create_dataset: expected elements; got none from all records. Look at its filters."
    )


def test_an_endless_dataset(told):
    line = told(replaced={"model_def": "broken.Endless"})
    assert "expected a dataset that ends; got an endless one. Leave out repeat()" in line


def test_elements_of_different_shapes(told):
    line = told(replaced={"model_def": "broken.Ragged"})
    assert line.startswith("create_dataset")
    assert "shape" in line


def test_a_loss_that_does_not_depend_on_the_weights(told):
    line = told(replaced={"model_def": "broken.NoUseOfWeights"})
    assert line == "loss: expected it to depend on the model's weights; it does not."


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_is_not_a_number(told, numbered, workers):
    line = told(
        f"--num_workers={workers}",
        "--slice_records=4",
        "--batch_size=16",
        replaced={"model_def": "broken.Diverges"},
    )
    assert line.startswith("loss: expected a finite number; got nan at step 1, from ")
    assert line.endswith(" leaves such steps out.")
    places = re.findall(rf"{re.escape(str(numbered(64)))}, records (\d+) to (\d+)", line)
    assert 1 <= len(places) <= 3
    assert all(int(begin) >= 40 and int(end) == int(begin) + 3 for begin, end in places)


def test_metrics_of_another_form(told):
    line = told(replaced={"model_def": "broken.MetricsOfText"})
    assert line.startswith(
        "create_metrics of broken.MetricsOfText: expected a dict of scalar tensors or Keras "
        "metrics; got 'accuracy'"
    )


def test_a_metric_that_is_no_scalar(told):
    line = told(replaced={"model_def": "broken.MetricOfVectors"})
    assert "metric 'distance': expected a scalar tensor or a Keras metric; got a float32" in line


def test_more_workers_than_streams(told):
    line = told("--num_workers=3", "--streams=2")
    assert line == (
        "num_workers: expected at most one worker a stream, 2; got 3. Raise --streams to 3 or "
        "use fewer workers."
    )


# ---- the command line -------------------------------------------------------------------------


def test_an_unknown_flag(told):
    line = told("--num_wrokers=2")
    assert "--num_wrokers" in line
    assert "--num_workers" in line


def test_a_missing_setting(run, numbered):
    ended = run("train", f"--data={numbered(64)}")
    assert ended.status == 2
    assert ended.err.startswith("error: model_def, output: expected by elasticdl train; got ")


def test_params_that_are_no_literals(told):
    line = told('--params=units=__import__("os").getpid()')
    assert line.startswith("params: expected name=literal, name=literal; got ")


# ---- the output -------------------------------------------------------------------------------


def test_an_output_elsewhere_than_on_this_machine(told, tmp_path):
    line = told(replaced={"output": "gs://bucket/model"}, cwd=tmp_path)
    assert line.startswith("output: expected a path on this machine; got gs://bucket/model.")
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file(told, tmp_path):
    (tmp_path / "file").touch()
    line = told(replaced={"output": tmp_path / "file" / "output"})
    assert line.startswith(f"output: {tmp_path}/file/output cannot be written: Not a directory")


def test_an_output_that_is_a_file(told, tmp_path):
    (tmp_path / "file").write_text("kept")
    line = told(replaced={"output": tmp_path / "file"})
    assert line.startswith(f"output: {tmp_path}/file cannot be written: Not a directory")
    assert (tmp_path / "file").read_text() == "kept"


def test_an_output_that_the_system_refuses(told):
    line = told(replaced={"output": "/proc/output"})
    assert line.startswith("output: /proc/output cannot be written: ")


@contextlib.contextmanager
def mounted(directory, *arguments):
    directory.mkdir()
    subprocess.run(["mount", *arguments, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@needs_root
def test_an_output_on_a_medium_that_is_read_only(told, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as disk:
        line = told(replaced={"output": disk / "output"})
        assert line.startswith(f"output: {disk}/output cannot be written: Read-only file system")


@needs_root
@pytest.mark.parametrize("size", ["64k", "600k"])
def test_a_disk_that_fills_up(told, tmp_path, size):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as disk:
        line = told("--params=units=50000", replaced={"output": disk / "output"})
        assert line.startswith(f"output: {disk}/output cannot be written: No space left on device")
        assert line.endswith("Free some space, or choose another --output.")
        assert list(disk.iterdir()) == []


# ---- trained models ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(train, numbered, tmp_path_factory):
    return train("broken.Fine", numbered(64), tmp_path_factory.mktemp("fine") / "model")


def test_a_result_is_not_replaced_unasked(told, trained):
    before = (trained / "trained_model.pb").read_bytes()
    line = told(replaced={"output": trained})
    assert line == (
        f"output: {trained} already has a result (trained_model.pb). Choose another --output, or "
        "replace it with --overwrite."
    )
    assert (trained / "trained_model.pb").read_bytes() == before
    assert not (trained / ".elasticdl").exists()


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_no_trained_model(told, tmp_path, kind):
    line = told(kind=kind, replaced={"trained_model": tmp_path / "nowhere"})
    assert line.startswith("trained_model: expected the output of a training, a directory with ")


def test_parameters_that_are_damaged(told, trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    with (copy / "parameters.safetensors").open("ab") as file:
        file.write(b"\0")
    line = told(kind="evaluate", replaced={"trained_model": copy})
    assert f"expected {copy}/parameters.safetensors as it was written; got other content" in line


def test_records_that_are_not_those_of_the_model(told, trained, tmp_path):
    path = support.write(tmp_path / "other.recordio", {"name": np.asarray([b"a", b"b"])})
    line = told(kind="predict", replaced={"trained_model": trained, "data": path})
    assert line.startswith("create_dataset: ")
    assert "Feature: id (data type: int64) is required but could not be found." in line
    assert line.endswith(f"({path}, records 0 to 0)")
