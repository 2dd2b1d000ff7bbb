"""TensorFlow reads what we write without it."""

import math

import pytest
import tensorflow as tf

from elasticdl.master.eventfile import Writer


def written(directory):
    (path,) = directory.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    return list(tf.compat.v1.train.summary_iterator(str(path)))


def test_scalars_are_read_back(tmp_path):
    directory = tmp_path / "logs" / "train"
    writer = Writer(directory)
    writer.scalars({"loss": 0.5, "accuracy": 0.25}, 10)
    writer.scalars({"loss": math.nan}, 1 << 40)
    # What was added is there before the file is closed.
    first, second, third = written(directory)
    writer.close()
    assert first.file_version == "brain.Event:2"
    assert second.step == 10
    assert {value.tag: value.simple_value for value in second.summary.value} == {
        "loss": 0.5,
        "accuracy": 0.25,
    }
    assert third.step == 1 << 40
    assert math.isnan(third.summary.value[0].simple_value)
    assert first.wall_time <= second.wall_time <= third.wall_time


def test_names_of_any_script_are_read_back(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars({"точность/本": 1.0}, 1)
    writer.close()
    assert written(tmp_path)[1].summary.value[0].tag == "точность/本"


def test_damage_would_be_noticed(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars({"loss": 0.5}, 1)
    writer.close()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        written(tmp_path)
