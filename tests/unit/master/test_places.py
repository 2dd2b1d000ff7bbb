"""A job leaves its result, whole, or nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elasticdl.config import JobConfig
from elasticdl.data import outputs
from elasticdl.errors import UserError
from elasticdl.master import places


def config(kind, output, **fields):
    names = {"train": "model_def", "evaluate": "trained_model", "predict": "trained_model"}
    return JobConfig(
        kind=kind, data="data", output=str(output), job_name="a-job", **{names[kind]: "m"}, **fields
    )


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("kind", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("output", ["out", "some/where/deep", "pre.recordio"])
def test_a_job_that_fails_leaves_nothing_behind(tmp_path, kind, output):
    place = places.Places.of(config(kind, tmp_path / output))
    assert place.logs.is_dir()
    (place.result / "half").mkdir()
    (place.result / "half" / "file").write_text("x")
    (place.work / "metrics.jsonl").write_text("x")
    place.discard()
    assert tree(tmp_path) == []


def test_directories_that_were_there_stay(tmp_path):
    (tmp_path / "some" / "where").mkdir(parents=True)
    places.Places.of(config("train", tmp_path / "some" / "where" / "else")).discard()
    assert tree(tmp_path) == ["some", "some/where"]


def test_an_evaluation_without_output_works_in_a_temporary_directory():
    place = places.Places.of(config("evaluate", ""))
    assert place.output is None
    place.publish_file("metrics.json", "{}")
    place.discard()
    assert not place.work.exists()


def test_logs_stay_where_they_are_asked_for(tmp_path):
    place = places.Places.of(config("train", tmp_path / "out"))
    (place.logs / "worker-0.log").write_text("why")
    (place.result / "half").mkdir()
    place.discard(keep_logs=True)
    assert tree(tmp_path / "out") == [
        ".elasticdl",
        ".elasticdl/workers",
        ".elasticdl/workers/worker-0.log",
    ]
    # The next job there starts anew.
    again = places.Places.of(config("train", tmp_path / "out"))
    assert tree(again.work) == ["claim", "result", "workers"]
    again.discard()


def test_what_a_dead_job_has_left_is_cleared_away(tmp_path):
    work = tmp_path / "out" / ".elasticdl"
    (work / "result" / "generation-1").mkdir(parents=True)
    (work / "claim").write_text("{}")
    (work / "metrics.jsonl").write_text("old")
    (work / "link").symlink_to(tmp_path)
    place = places.Places.of(config("train", tmp_path / "out"))
    assert tree(work) == ["claim", "result", "workers"]
    place.discard()
    # Whose directory it is cannot be known any more.
    assert tree(tmp_path) == ["out"]


def test_an_output_that_vanishes_under_a_job_is_no_fault_of_ours(tmp_path):
    place = places.Places.of(config("train", tmp_path / "out"))
    os.rename(tmp_path / "out", tmp_path / "elsewhere")
    place.discard()


def test_a_second_job_is_refused_and_leaves_the_first_alone(tmp_path):
    first = places.Places.of(config("train", tmp_path / "out"))
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is being written by job a-job"):
        places.Places.of(config("evaluate", tmp_path / "out", overwrite=True))
    assert tree(tmp_path) == before
    first.discard()


@pytest.mark.parametrize(
    ("kind", "output", "result"),
    [
        ("train", "out", "out/trained_model.pb"),
        ("evaluate", "out", "out/metrics.json"),
        ("predict", "out", "out/part-00000-of-00002.recordio"),
        ("predict", "out.recordio", "out.recordio"),
    ],
)
def test_a_result_is_replaced_only_when_asked_to(tmp_path, kind, output, result):
    (tmp_path / result).parent.mkdir(exist_ok=True)
    (tmp_path / result).write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(UserError) as raised:
        places.Places.of(config(kind, tmp_path / output))
    assert str(raised.value) == (
        f"output: {tmp_path / output} already has a result ({Path(result).name}). Choose another "
        "--output, or replace it with --overwrite."
    )
    assert tree(tmp_path) == before
    place = places.Places.of(config(kind, tmp_path / output, overwrite=True))
    place.discard()
    assert tree(tmp_path) == before


def test_other_files_in_the_output_do_not_matter(tmp_path):
    (tmp_path / "README").write_text("x")
    for kind in ("train", "evaluate", "predict"):
        places.Places.of(config(kind, tmp_path)).discard()
    assert tree(tmp_path) == ["README"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_is_not_taken_for_one_file(tmp_path, overwrite):
    (tmp_path / "dir.recordio").mkdir()
    with pytest.raises(UserError, match=r"expected a file, as its name ends in \.recordio"):
        places.Places.of(config("predict", tmp_path / "dir.recordio", overwrite=overwrite))
    assert tree(tmp_path) == ["dir.recordio"]


@pytest.mark.parametrize("kind", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("output", ["file", "file/below", "file/far/below.recordio"])
def test_an_output_under_a_file_is_refused(tmp_path, kind, output):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as raised:
        places.Places.of(config(kind, tmp_path / output))
    text = str(raised.value)
    assert text.startswith(f"output: {tmp_path / output} cannot be written: ")
    assert text.endswith("A directory is expected there, or choose another --output.")
    assert tree(tmp_path) == ["file"]


def test_an_output_that_cannot_be_made_is_refused():
    with pytest.raises(UserError, match=r"output: /proc/here cannot be written: .*writable"):
        places.Places.of(config("train", "/proc/here"))


def test_a_disk_that_is_full_is_told(tmp_path):
    place = places.Places.of(config("predict", tmp_path / "all.recordio"))
    (place.result / outputs.part_name(0, 1)).write_bytes(b"x" * 100)
    (place.work / "whole").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        place.publish_parts(1)
    place.discard()
    assert tree(tmp_path) == []


def parts(place, *contents):
    for number, content in enumerate(contents):
        (place.result / outputs.part_name(number, len(contents))).write_text(content)


def test_parts_go_into_the_output_in_place_of_older_ones(tmp_path):
    place = places.Places.of(config("predict", tmp_path))
    parts(place, "a", "b", "c")
    place.publish_parts(3)
    place.discard()
    assert tree(tmp_path) == [f"part-0000{n}-of-00003.recordio" for n in range(3)]
    assert (tmp_path / "part-00001-of-00003.recordio").read_text() == "b"

    (tmp_path / "mine.txt").write_text("x")
    again = places.Places.of(config("predict", tmp_path, overwrite=True))
    parts(again, "d")
    again.publish_parts(1)
    again.discard()
    assert tree(tmp_path) == ["mine.txt", "part-00000-of-00001.recordio"]


def test_parts_become_one_file_where_the_output_names_one(tmp_path):
    output = tmp_path / "new" / "all.recordio"
    place = places.Places.of(config("predict", output))
    parts(place, "a", "b", "c")
    place.publish_parts(3)
    place.discard()
    assert tree(tmp_path) == ["new", "new/all.recordio"]
    assert output.read_text() == "abc"

    again = places.Places.of(config("predict", output, overwrite=True))
    parts(again, "d")
    assert output.read_text() == "abc"
    again.publish_parts(1)
    again.discard()
    assert output.read_text() == "d"


@pytest.mark.parametrize("lines", ["", "some"])
def test_the_history_becomes_a_part_of_the_result(tmp_path, lines):
    place = places.Places.of(config("train", tmp_path))
    (place.logs / "worker-0.log").write_text("words")
    if lines:
        (place.work / "metrics.jsonl").write_text(lines)
    result = place.result / "generation-3"
    result.mkdir()
    place.add_history(result)
    assert tree(result) == ["logs", "metrics.jsonl"]
    assert (result / "metrics.jsonl").read_text() == lines
    place.discard()
    assert tree(tmp_path) == []


def test_a_small_file_is_replaced_whole(tmp_path):
    (tmp_path / "metrics.json").write_text("old")
    place = places.Places.of(config("evaluate", tmp_path, overwrite=True))
    place.publish_file("metrics.json", "{}\n")
    place.discard()
    assert tree(tmp_path) == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "{}\n"


def test_jobs_that_come_and_go_never_have_an_output_together(tmp_path):
    code = """
import os, pathlib, sys
from elasticdl.config import JobConfig
from elasticdl.errors import UserError
from elasticdl.master.places import Places
root = pathlib.Path(sys.argv[1])
output = str(root / "new" / "out")
config = JobConfig(kind="train", data="d", model_def="m", output=output, job_name="j")
entered = 0
while entered < 50:
    try:
        place = Places.of(config)
    except UserError as error:
        assert "is being written by" in str(error), error
        continue
    os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
    entered += 1
    assert sorted(os.listdir(place.work)) == ["claim", "result", "workers"]
    (root / "inside").unlink()
    place.discard()
"""
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [each.wait() for each in many] == [0, 0, 0]
    # A job that found directories of another's making leaves them.
    assert set(tree(tmp_path)) <= {"new", "new/out"}
