"""A job leaves its result, whole, or what a later one can go on from."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elasticdl.cluster import local
from elasticdl.config import JobConfig
from elasticdl.data import outputs, recordio
from elasticdl.errors import UserError
from elasticdl.master import definition, places
from elasticdl.master.places import Beginning
from elasticdl.model import artifact
from elasticdl.wire import elasticdl_pb2 as pb


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 40 records."""
    path = tmp_path_factory.mktemp("data") / "data.recordio"
    with recordio.Writer(str(path)) as writer:
        for number in range(40):
            writer.write(str(number).encode())
    return path


@pytest.fixture
def config(data):
    """Makes a configuration of some kind."""

    def config(kind, output, **fields):
        model = "model_def" if kind == "train" else "trained_model"
        given = {"kind": kind, "data": str(data), "job_name": "a-job", model: "m"}
        return JobConfig(**(given | {"output": str(output)} | fields))

    return config


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("kind", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("output", ["out", "some/where/deep", "pre.recordio"])
def test_a_job_that_fails_leaves_nothing_behind(tmp_path, kind, output, config):
    place = places.Places.of(config(kind, tmp_path / output))
    assert place.logs.is_dir()
    (place.result / "half").mkdir()
    (place.result / "half" / "file").write_text("x")
    (place.work / "metrics.jsonl").write_text("x")
    place.discard()
    assert tree(tmp_path) == []


def test_directories_that_were_there_stay(tmp_path, config):
    (tmp_path / "some" / "where").mkdir(parents=True)
    places.Places.of(config("train", tmp_path / "some" / "where" / "else")).discard()
    assert tree(tmp_path) == ["some", "some/where"]


def test_an_evaluation_without_output_works_in_a_temporary_directory(config):
    place = places.Places.of(config("evaluate", ""))
    assert place.output is None
    place.publish_file("metrics.json", "{}")
    place.discard()
    assert not place.work.exists()


def test_logs_stay_where_they_are_asked_for(tmp_path, config):
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
    assert tree(again.work) == ["claim", "job.json", "result", "workers"]
    again.discard()


def test_what_a_dead_job_has_left_is_cleared_away(tmp_path, config):
    work = tmp_path / "out" / ".elasticdl"
    (work / "result" / "generation-1").mkdir(parents=True)
    (work / "claim").write_text("{}")
    (work / "metrics.jsonl").write_text("old")
    (work / "link").symlink_to(tmp_path)
    place = places.Places.of(config("train", tmp_path / "out"))
    assert tree(work) == ["claim", "job.json", "result", "workers"]
    place.discard()
    # Whose directory it is cannot be known any more.
    assert tree(tmp_path) == ["out"]


def test_an_output_that_vanishes_under_a_job_is_no_fault_of_ours(tmp_path, config):
    place = places.Places.of(config("train", tmp_path / "out"))
    os.rename(tmp_path / "out", tmp_path / "elsewhere")
    place.discard()


def test_a_second_job_is_refused_and_leaves_the_first_alone(tmp_path, config):
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
def test_a_result_is_replaced_only_when_asked_to(tmp_path, kind, output, result, config):
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


def test_other_files_in_the_output_do_not_matter(tmp_path, config):
    (tmp_path / "README").write_text("x")
    for kind in ("train", "evaluate", "predict"):
        places.Places.of(config(kind, tmp_path)).discard()
    assert tree(tmp_path) == ["README"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_is_not_taken_for_one_file(tmp_path, overwrite, config):
    (tmp_path / "dir.recordio").mkdir()
    with pytest.raises(UserError, match=r"expected a file, as its name ends in \.recordio"):
        places.Places.of(config("predict", tmp_path / "dir.recordio", overwrite=overwrite))
    assert tree(tmp_path) == ["dir.recordio"]


@pytest.mark.parametrize("kind", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("output", ["file", "file/below", "file/far/below.recordio"])
def test_an_output_under_a_file_is_refused(tmp_path, kind, output, config):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as raised:
        places.Places.of(config(kind, tmp_path / output))
    text = str(raised.value)
    assert text.startswith(f"output: {tmp_path / output} cannot be written: ")
    assert text.endswith("A directory is expected there, or choose another --output.")
    assert tree(tmp_path) == ["file"]


def test_an_output_that_cannot_be_made_is_refused(config):
    with pytest.raises(UserError, match=r"output: /proc/here cannot be written: .*writable"):
        places.Places.of(config("train", "/proc/here"))


def test_a_disk_that_is_full_is_told(tmp_path, config):
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


def test_parts_go_into_the_output_in_place_of_older_ones(tmp_path, config):
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


def test_parts_become_one_file_where_the_output_names_one(tmp_path, config):
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


def trained(place, name="generation-1-1"):
    """What a worker leaves to be published."""
    directory = place.result / name
    directory.mkdir()
    message = pb.TrainedModel(model_def="m", params_filename="parameters.safetensors")
    (directory / "parameters.safetensors").write_bytes(b"weights")
    (directory / artifact.TRAINED_MODEL).write_bytes(message.SerializeToString())
    return directory


@pytest.mark.parametrize("lines", ["", "some"])
def test_the_history_becomes_a_part_of_the_result(tmp_path, config, lines):
    place = places.Places.of(config("train", tmp_path))
    (place.logs / "worker-0.log").write_text("words")
    if lines:
        (place.work / "metrics.jsonl").write_text(lines)
        (place.work / "events.jsonl").write_text(lines)
        checkpoint(place)
    place.publish_model(trained(place), overwrite=False)
    place.discard()
    checkpoints = ["checkpoints", f"checkpoints/{CHECKPOINT}"] if lines else []
    assert tree(tmp_path) == [
        *checkpoints,
        "events.jsonl",
        "logs",
        "metrics.jsonl",
        "parameters.safetensors",
        "trained_model.pb",
    ]
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert (tmp_path / "events.jsonl").read_text() == lines


def test_a_small_file_is_replaced_whole(tmp_path, config):
    (tmp_path / "metrics.json").write_text("old")
    place = places.Places.of(config("evaluate", tmp_path, overwrite=True))
    place.publish_file("metrics.json", "{}\n")
    place.discard()
    assert tree(tmp_path) == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "{}\n"


def test_jobs_that_come_and_go_never_have_an_output_together(tmp_path, data):
    code = """
import os, pathlib, sys
from elasticdl.config import JobConfig
from elasticdl.errors import UserError
from elasticdl.master.places import Places
root = pathlib.Path(sys.argv[1])
output = str(root / "new" / "out")
config = JobConfig(kind="train", data=sys.argv[2], model_def="m", output=output, job_name="j")
entered = 0
while entered < 50:
    try:
        place = Places.of(config)
    except UserError as error:
        assert "is being written by" in str(error), error
        continue
    os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
    entered += 1
    assert sorted(os.listdir(place.work)) == ["claim", "job.json", "result", "workers"]
    (root / "inside").unlink()
    place.discard()
"""
    many = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(data)]) for _ in range(3)
    ]
    assert [each.wait() for each in many] == [0, 0, 0]
    # A job that found directories of another's making leaves them.
    assert set(tree(tmp_path)) <= {"new", "new/out"}


# ---- what a master finds ------------------------------------------------------------------------

CHECKPOINT = "checkpoint-t00000003-g00000002-v000000000500.safetensors"


def checkpoint(place):
    place.checkpoints.mkdir()
    (place.checkpoints / CHECKPOINT).write_bytes(b"replica")


def dies(place):
    """What is left when a master is killed: its claim is free."""
    place.claim.release()


@pytest.fixture
def worker():
    """Starts processes that look like a job's workers."""
    started = []

    def worker(place, name="worker-0"):
        code = "import signal; signal.pause()"
        arguments = [sys.executable, "-c", code, "elasticdl.worker", str(place.locator), name]
        started.append(subprocess.Popen(arguments, start_new_session=True))
        return started[-1]

    yield worker
    for process in started:
        process.kill()
        process.wait()


def alive(place):
    return sorted(local.observed(str(place.locator)))


def test_the_first_master_begins_anew(tmp_path, config):
    place = places.Places.of(config("train", tmp_path / "out", num_workers=2))
    assert place.beginning is Beginning.ANEW
    assert (place.definition.term, place.definition.data.total) == (1, 40)
    assert definition.Definition.read(place.work) == place.definition
    place.discard()


def test_a_training_goes_on_from_checkpoints(tmp_path, config):
    first = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(first)
    (first.work / "metrics.jsonl").write_text("lines")
    dies(first)
    again = places.Places.of(config("train", tmp_path / "out", epochs=5, num_workers=3))
    assert again.beginning is Beginning.RESUME
    # What it forms and writes is newer than all that there is.
    assert again.definition.term == 4
    assert (again.definition.config.epochs, again.definition.config.num_workers) == (5, 3)
    assert (again.checkpoints / CHECKPOINT).read_bytes() == b"replica"
    assert (again.work / "metrics.jsonl").read_text() == "lines"
    again.discard()


def test_a_training_without_checkpoints_begins_anew_with_a_higher_term(tmp_path, config):
    first = places.Places.of(config("train", tmp_path / "out"))
    (first.work / "metrics.jsonl").write_text("lines")
    first.checkpoints.mkdir()
    (first.checkpoints / f".{CHECKPOINT}.1f.partial").write_bytes(b"half")
    dies(first)
    again = places.Places.of(config("train", tmp_path / "out"))
    assert (again.beginning, again.definition.term) == (Beginning.ANEW, 2)
    assert tree(again.work) == ["claim", "job.json", "result", "workers"]
    again.discard()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"batch_size": 32}, "batch_size: expected 64, as in the checkpoint; got 32"),
        ({"model_def": "m.Other"}, "model_def: expected 'm', as in the checkpoint; got 'm.Other'"),
        ({"slice_records": 4}, "slice_records: expected "),
    ],
)
def test_checkpoints_of_another_training_are_refused_by_name(tmp_path, config, fields, problem):
    first = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(first)
    dies(first)
    before = tree(tmp_path)
    with pytest.raises(UserError) as raised:
        places.Places.of(config("train", tmp_path / "out", **fields))
    assert str(raised.value).startswith(problem)
    assert str(raised.value).endswith(
        f". There are checkpoints in {first.checkpoints}: give the same settings and data to go "
        "on from them, --restart to begin anew, or --from_checkpoint in another output to begin "
        "with their weights."
    )
    assert tree(tmp_path) == before
    assert definition.Definition.read(first.work) == first.definition


def test_restart_begins_anew_and_its_term_is_still_the_highest(tmp_path, config):
    first = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(first)
    dies(first)
    again = places.Places.of(config("train", tmp_path / "out", restart=True, batch_size=32))
    assert (again.beginning, again.definition.term) == (Beginning.ANEW, 4)
    assert not again.checkpoints.exists()
    again.discard()


def test_checkpoints_are_not_lost_to_a_job_of_another_kind(tmp_path, config):
    first = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(first)
    dies(first)
    before = tree(tmp_path)
    with pytest.raises(UserError) as raised:
        places.Places.of(config("evaluate", tmp_path / "out"))
    assert str(raised.value) == (
        f"output: {tmp_path / 'out'} has checkpoints of another training, in {first.checkpoints}. "
        "Choose another --output, or remove them."
    )
    assert tree(tmp_path) == before


def test_checkpoints_that_nothing_is_known_of_are_removed_only_when_asked_to(tmp_path, config):
    first = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(first)
    (first.work / "job.json").write_text('{"of": "another version"}')
    dies(first)
    with pytest.raises(UserError, match="has checkpoints of another training"):
        places.Places.of(config("train", tmp_path / "out"))
    assert (first.checkpoints / CHECKPOINT).exists()
    again = places.Places.of(config("train", tmp_path / "out", restart=True))
    assert (again.beginning, again.definition.term) == (Beginning.ANEW, 4)
    again.discard()


def test_checkpoints_stay_when_a_job_ends_without_a_result(tmp_path, config):
    place = places.Places.of(config("train", tmp_path / "out"))
    checkpoint(place)
    for name in ("metrics.jsonl", "events.jsonl", "master.json"):
        (place.work / name).write_text(name)
    (place.result / "half").mkdir()
    assert place.scratch.is_dir()
    place.discard()
    assert tree(tmp_path / "out") == [
        ".elasticdl",
        ".elasticdl/checkpoints",
        f".elasticdl/checkpoints/{CHECKPOINT}",
        ".elasticdl/events.jsonl",
        ".elasticdl/job.json",
        ".elasticdl/metrics.jsonl",
    ]
    again = places.Places.of(config("train", tmp_path / "out"))
    assert again.beginning is Beginning.RESUME
    again.discard()


def test_a_prediction_goes_on_from_the_parts_that_are_done(tmp_path, config):
    asked = config("predict", tmp_path / "out", slice_records=10)
    first = places.Places.of(asked)
    parts(first, "a", "b")
    dies(first)
    again = places.Places.of(dataclasses.replace(asked, num_workers=2))
    assert again.beginning is Beginning.RESUME
    assert again.parts == {outputs.part_name(number, 2) for number in range(2)}
    dies(again)
    other = places.Places.of(dataclasses.replace(asked, trained_model="other"))
    assert (other.beginning, other.parts) == (Beginning.ANEW, set())
    other.discard()


def test_living_workers_are_taken_over_by_the_same_command(tmp_path, config, worker):
    asked = config("train", tmp_path / "out", num_workers=2)
    first = places.Places.of(asked)
    worker(first)
    (first.work / "metrics.jsonl").write_text("lines")
    dies(first)
    again = places.Places.of(dataclasses.replace(asked, num_workers=3, job_name="generated"))
    assert (again.beginning, again.definition.term) == (Beginning.TAKEOVER, 2)
    assert again.definition.config == dataclasses.replace(asked, num_workers=3)
    assert again.definition.data == first.definition.data
    assert definition.Definition.read(again.work) == again.definition
    assert (again.work / "metrics.jsonl").read_text() == "lines"
    assert alive(again) == ["worker-0"]
    again.discard()


def test_living_workers_of_another_command_are_left_alone(tmp_path, config, worker):
    first = places.Places.of(config("train", tmp_path / "out"))
    worker(first)
    dies(first)
    before = tree(tmp_path)
    with pytest.raises(UserError) as raised:
        places.Places.of(config("train", tmp_path / "out", epochs=5))
    assert str(raised.value) == (
        "output: workers of job a-job (epochs = 1, not 5) still run there without a master. Wait "
        "orphan_s = 60 s for them to end, give the same command to take them over, or end them "
        "with `elasticdl job stop a-job`."
    )
    assert tree(tmp_path) == before
    assert alive(first) == ["worker-0"]


@pytest.mark.parametrize("readable", [True, False])
def test_living_workers_are_ended_where_their_job_cannot_go_on(tmp_path, config, worker, readable):
    asked = config("train", tmp_path / "out")
    first = places.Places.of(asked)
    worker(first, "worker-0")
    worker(first, "worker-1")
    if not readable:
        (first.work / "job.json").write_text("{")
    dies(first)
    again = places.Places.of(dataclasses.replace(asked, restart=readable))
    assert again.beginning is Beginning.ANEW
    assert alive(again) == []
    again.discard()


def test_the_next_master_wants_as_many_workers_as_the_last_one_was_asked_for(tmp_path, config):
    asked = config("train", tmp_path / "out", num_workers=2)
    first = places.Places.of(asked)
    first.scaled(4)
    first.claim.release()
    again = places.Places.of(asked, again=str(first.work))
    assert again.definition.config.num_workers == 4
    again.claim.release()


def test_a_later_master_of_the_same_submission_takes_over_with_a_higher_number(tmp_path, config):
    asked = config("train", tmp_path / "out")
    first = places.Places.of(asked, submission="one", term=3)
    assert first.definition.term == 3
    first.claim.release()
    second = places.Places.of(asked, submission="one", term=9)
    assert (second.beginning, second.definition.term) == (Beginning.TAKEOVER, 9)
    second.claim.release()
    # Another job of the same name is no later master of this one.
    third = places.Places.of(asked, submission="two", term=1)
    assert (third.beginning, third.definition.term) == (Beginning.ANEW, 10)
    third.discard()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("restart", [False, True])
def test_the_next_master_of_a_command_takes_over_whoever_lives(tmp_path, config, kind, restart):
    asked = config(kind, tmp_path / "out" if kind == "train" else "", restart=restart)
    first = places.Places.of(asked)
    (first.work / "events.jsonl").write_text("lines")
    dies(first)
    second = places.Places.of(asked, again=str(first.work))
    assert (second.beginning, second.definition.term) == (Beginning.TAKEOVER, 2)
    assert second.work == first.work
    assert (second.work / "events.jsonl").read_text() == "lines"
    dies(second)
    third = places.Places.of(asked, again=str(first.work))
    assert (third.beginning, third.definition.term) == (Beginning.TAKEOVER, 3)
    third.discard()
    assert not first.work.exists()


def test_a_job_that_died_before_it_was_decided_begins_anew(tmp_path, config):
    asked = config("train", tmp_path / "out")
    first = places.Places.of(asked)
    (first.work / "job.json").unlink()
    dies(first)
    again = places.Places.of(asked, again=str(first.work))
    assert (again.beginning, again.definition.term) == (Beginning.ANEW, 1)
    again.discard()


# ---- a master that dies while it publishes -----------------------------------------------------


def dies_at(moves, publish):
    """Publishes in a process that dies in place of moving a file for the `moves`-th time; whether
    it came to that.
    """
    child = os.fork()
    if not child:
        left = [moves]

        def watch(event, arguments):
            if event == "os.rename":
                left[0] -= 1
                if left[0] < 0:
                    os._exit(1)

        sys.addaudithook(watch)
        try:
            publish()
            os._exit(0)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 1


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moves", range(12))
def test_a_model_is_published_whole_whenever_its_master_died(tmp_path, config, moves, overwrite):
    asked = config("train", tmp_path / "out", overwrite=overwrite)
    if overwrite:
        earlier = places.Places.of(asked)
        earlier.publish_model(trained(earlier), overwrite=True)
        earlier.discard()
        (tmp_path / "out" / "parameters.safetensors").write_bytes(b"old")
    first = places.Places.of(asked)
    checkpoint(first)
    (first.work / "metrics.jsonl").write_text("lines")
    result = trained(first)
    died = dies_at(moves, lambda: first.publish_model(result, overwrite=overwrite))
    assert died == (moves < 11)
    dies(first)

    again = places.Places.of(asked, again=str(first.work))
    if again.beginning is Beginning.TAKEOVER:
        assert again.publication is None  # nothing was moved yet: a worker brings a result again
        again.publish_model(result, overwrite=overwrite)
    else:
        assert again.beginning is Beginning.PUBLISHED
        again.publish_model(Path(again.publication), overwrite=overwrite)
    assert again.definition.term > first.definition.term
    again.discard()
    assert tree(tmp_path / "out") == [
        "checkpoints",
        f"checkpoints/{CHECKPOINT}",
        "events.jsonl",
        "logs",
        "metrics.jsonl",
        "parameters.safetensors",
        "trained_model.pb",
    ]
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == "lines"
    assert (tmp_path / "out" / "parameters.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["out", "out.recordio"])
@pytest.mark.parametrize("moves", range(5))
def test_parts_are_published_whole_whenever_their_master_died(tmp_path, config, moves, name):
    asked = config("predict", tmp_path / name, overwrite=True, slice_records=10)
    earlier = places.Places.of(asked)
    parts(earlier, "old", "old", "old")
    earlier.publish_parts(3)
    earlier.discard()
    first = places.Places.of(asked)
    parts(first, "a", "b", "c")
    dies_at(moves, lambda: first.publish_parts(3))
    dies(first)

    again = places.Places.of(asked, again=str(first.work))
    if again.beginning is Beginning.TAKEOVER:
        parts(again, "a", "b", "c")  # workers do again what is missing
    again.publish_parts(3)
    again.discard()
    whole = sorted(tmp_path.rglob("*.recordio"))
    assert "".join(path.read_text() for path in whole if path.is_file()) == "abc"


def test_an_old_result_of_the_jobs_own_name_is_not_taken_for_its_result(tmp_path, config):
    asked = config("train", tmp_path / "out", overwrite=True)
    earlier = places.Places.of(asked)
    earlier.publish_model(trained(earlier), overwrite=True)
    earlier.discard()
    first = places.Places.of(asked)
    dies(first)
    again = places.Places.of(asked, again=str(first.work))
    assert again.beginning is Beginning.TAKEOVER
    again.discard()


def test_the_same_command_completes_a_publication_that_everything_died_in(tmp_path, config):
    asked = config("train", tmp_path / "out")
    first = places.Places.of(asked)
    result = trained(first)
    assert dies_at(3, lambda: first.publish_model(result, overwrite=False))
    dies(first)
    again = places.Places.of(asked)
    assert again.beginning is Beginning.PUBLISHED
    again.publish_model(Path(again.publication), overwrite=False)
    again.discard()
    assert (tmp_path / "out" / artifact.TRAINED_MODEL).exists()
