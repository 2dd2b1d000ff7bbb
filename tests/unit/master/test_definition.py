"""A job is decided once and read back by every later master; what has changed is named."""

import dataclasses
import json

import pytest

from elasticdl.config import JobConfig
from elasticdl.data import recordio
from elasticdl.errors import UserError
from elasticdl.master import definition
from elasticdl.master.definition import Data, Definition, other_command, other_training

CONFIG = JobConfig(
    kind="train", model_def="m.Model", data="data/*.recordio", output="out", job_name="a-job"
)
DATA = Data(files=("a", "b"), records=(30, 10), sizes=(300, 100), slice_records=8)
JOB = Definition(CONFIG, DATA, None, term=3)


def changed(**fields):
    return dataclasses.replace(CONFIG, **fields)


def with_data(**fields):
    return dataclasses.replace(JOB, data=dataclasses.replace(DATA, **fields))


@pytest.mark.parametrize("eval_data", [None, Data(("c",), (5,), (50,), 5)])
def test_what_was_written_is_read_back(tmp_path, eval_data):
    job = dataclasses.replace(JOB, eval_data=eval_data)
    job.write(tmp_path)
    assert Definition.read(tmp_path) == job
    later = dataclasses.replace(job, term=4)
    later.write(tmp_path)
    assert Definition.read(tmp_path) == later
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        json.dumps({"config": {"kind": "tarin"}, "data": {}, "eval_data": None, "term": 1}),
        json.dumps({"config": {"later_setting": 1}, "data": {}, "eval_data": None, "term": 1}),
    ],
)
def test_what_cannot_be_made_out_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    assert Definition.read(tmp_path) is None


def test_settings_that_came_later_have_their_defaults(tmp_path):
    JOB.write(tmp_path)
    content = json.loads((tmp_path / "job.json").read_text())
    del content["config"]["orphan_s"]
    (tmp_path / "job.json").write_text(json.dumps(content))
    assert Definition.read(tmp_path) == JOB


def test_data_are_counted_and_measured(tmp_path):
    for name, count in (("a", 30), ("b", 10)):
        with recordio.Writer(str(tmp_path / f"{name}.recordio")) as writer:
            for number in range(count):
                writer.write(str(number).encode())
    found = Data.of("data", str(tmp_path), changed(slice_records=8))
    files = [tmp_path / "a.recordio", tmp_path / "b.recordio"]
    assert found == Data(
        tuple(map(str, files)), (30, 10), tuple(f.stat().st_size for f in files), 8
    )
    assert (found.total, found.slices) == (40, 4 + 2)
    assert found.lengths == [8, 8, 8, 6, 8, 2]
    message = found.message()
    assert [(each.path, each.records) for each in message.files] == [
        (str(files[0]), 30),
        (str(files[1]), 10),
    ]


def test_data_that_are_not_there_are_told_under_their_name(tmp_path):
    with recordio.Writer(str(tmp_path / "a.recordio")) as writer:
        writer.write(b"a")
    with pytest.raises(UserError, match=r"^eval_data: expected a file"):
        Definition.of(changed(data=str(tmp_path), eval_data=str(tmp_path / "no")), 1)


# ---- the same command ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"job_name": "another"},
        {"num_workers": 3, "min_workers": 2},
        {"restart": True},
        {"overwrite": True},
    ],
)
def test_the_same_command_may_differ_in_these(fields):
    assert other_command(CONFIG, changed(**fields)) == ""


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"model_def": "m.Other"}, "model_def = 'm.Model', not 'm.Other'"),
        ({"epochs": 2}, "epochs = 1, not 2"),
        ({"grace_s": 2.0}, "grace_s = 1.0, not 2.0"),
        ({"data": "other", "seed": 5}, "data = 'data/*.recordio', not 'other'"),
    ],
)
def test_another_command_says_what_is_other(fields, difference):
    assert other_command(CONFIG, changed(**fields)) == difference


def test_every_other_setting_makes_another_command():
    values = {str: "b", int: 7, float: 0.5, bool: True}
    for setting in definition.configs.settings("train"):
        if setting.name in ("job_name", "num_workers", "min_workers", "restart", "overwrite"):
            continue
        chosen = {"checkpoint_every": "7", "nan_loss": "skip", "params_format": "proto"}
        chosen["params"] = "a=1"
        if setting.group == "Kubernetes":  # says where and with what, not what is trained
            continue
        chosen["cluster"] = "kubernetes"
        value = chosen.get(setting.name, values[setting.type])
        assert other_command(CONFIG, changed(**{setting.name: value})).startswith(setting.name)


def test_another_kind_of_job_is_another_command():
    evaluate = JobConfig(kind="evaluate", trained_model="m", data="other", output="out")
    assert other_command(CONFIG, evaluate) == "elasticdl train, not evaluate"


# ---- the same training --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"num_workers": 4},
        {"epochs": 9, "max_steps": 5},
        {"checkpoint_every": "5", "keep_checkpoints": 1},
        {"eval_every_steps": 3, "log_every_steps": 1},
        {"output": "moved", "model_zoo": "moved"},
    ],
)
def test_a_checkpoint_serves_a_training_that_differs_in_these(fields):
    now = dataclasses.replace(JOB, config=changed(**fields), term=9)
    assert other_training(JOB, now) == ""


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"model_def": "m.Other"}, "model_def: expected 'm.Model', as in the checkpoint; got "),
        ({"params": "a=1"}, "params: expected '', as in the checkpoint; got 'a=1'"),
        ({"batch_size": 32}, "batch_size: expected 64, as in the checkpoint; got 32"),
        ({"streams": 8}, "streams: expected 16, as in the checkpoint; got 8"),
        ({"seed": 1}, "seed: expected 0, as in the checkpoint; got 1"),
        ({"reproducible": True}, "reproducible: expected False, as in the checkpoint; got True"),
        ({"optimizer": "adam"}, "optimizer: expected '', as in the checkpoint; got 'adam'"),
        ({"loss": "mse"}, "loss: expected "),
        ({"input_fn": "m.f"}, "input_fn: expected "),
    ],
)
def test_another_training_says_what_is_other(fields, difference):
    now = dataclasses.replace(JOB, config=changed(**fields))
    assert other_training(JOB, now).startswith(difference)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (
            with_data(files=("a",), records=(30,), sizes=(300,)),
            "data: expected b, as in the checkpoint; it is not there",
        ),
        (
            with_data(files=("a", "b", "c"), records=(30, 10, 1), sizes=(300, 100, 10)),
            "data: expected the files of the checkpoint; got c besides",
        ),
        (
            with_data(records=(30, 11)),
            "data: expected b with 10 records in 100 bytes, as in the checkpoint; got 11 records "
            "in 100 bytes",
        ),
        (
            with_data(sizes=(301, 100)),
            "data: expected a with 30 records in 300 bytes, as in the checkpoint; got 30 records "
            "in 301 bytes",
        ),
        (
            with_data(slice_records=4),
            "slice_records: expected 8, as in the checkpoint; got 4",
        ),
    ],
)
def test_other_data_are_named(now, difference):
    assert other_training(JOB, now) == difference
