"""Training goes on whatever dies: no record lost, none repeated, the same weights bit for bit."""

import hashlib
import json
import os
import re
import shutil
import threading

import numpy as np
import pytest
import safetensors.numpy

from tests.jobs import faults, support
from tests.jobs.support import CONV, EPOCHS

RECORDS = 320
STEPS = RECORDS * EPOCHS // 16


def digest(output):
    return hashlib.sha256((output / "parameters.safetensors").read_bytes()).hexdigest()


def counts(output):
    """How often each record was used, as the weights say; all steps have 16 elements."""
    (value,) = support.weights(output).values()
    return value[:, 0]


def events(output, event):
    path = output / "events.jsonl"
    if not path.exists():
        path = output / ".elasticdl" / "events.jsonl"
    lines = map(json.loads, path.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def notes(output):
    return [line["text"] for line in events(output, "note")]


def endings(output):
    return {line["worker"]: line["how"] for line in events(output, "ended")}


def ran(output):
    """The generations that there were, each a list of its members."""
    return [line["members"] for line in events(output, "generation")]


@pytest.fixture(scope="module")
def undisturbed(train, digits, tmp_path_factory):
    """The weights that one worker comes to when nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    return digest(train("digits.Conv", digits.train, output, *CONV))


COUNT = (
    "--batch_size=16",
    f"--epochs={EPOCHS}",
    "--slice_records=7",
    "--reproducible",
    "--checkpoint_every=10",
    "--standby_workers=0",
)


@pytest.fixture
def count(train, numbered, plan, tmp_path):
    """Trains the model that counts, under the plan's faults."""

    def count(*arguments, workers=3):
        output = train(
            "faulty.Counting",
            numbered(RECORDS),
            tmp_path / "output",
            f"--params=records={RECORDS}, {plan.param}",
            f"--num_workers={workers}",
            *COUNT,
            *arguments,
        )
        np.testing.assert_array_equal(counts(output), np.full(RECORDS, float(EPOCHS)))
        return output

    return count


# ---- regroup and commit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("step", "reducing"), ("reduce", "reduced"), ("applied", "join"), ("send", "receive")],
)
def test_each_record_counts_once_an_epoch_wherever_workers_are_killed(count, plan, first, second):
    plan.crash(
        first, worker="worker-1" if first != "send" else "any", version=9 * (first != "send")
    )
    plan.crash(second, worker="worker-2" if second != "receive" else "any")
    output = count()
    assert plan.fired == [0, 1]
    assert len(ran(output)) >= 2


@pytest.mark.parametrize("points", [("reducing", "reduced"), ("applied", "saving")])
def test_the_weights_are_bit_for_bit_those_of_an_undisturbed_worker(
    disturbed, plan, undisturbed, points
):
    first, second = points
    plan.crash(first, worker="worker-0", version=5).crash(second, version=11)
    output = disturbed("--num_workers=3", "--checkpoint_every=4")
    assert plan.fired == [0, 1]
    assert digest(output) == undisturbed


def test_survivors_go_on_in_their_processes_when_one_stops_answering(count, plan):
    plan.stop("step", worker="worker-1", version=20)
    output = count()
    assert any("grace_s = 1 s" in text and "worker-1" in text for text in notes(output))
    # The two others were in each generation, and ended by themselves.
    assert all({"worker-0", "worker-2"} <= set(members) for members in ran(output))
    assert {endings(output)[name] for name in ("worker-0", "worker-2")} == {"exit status 0"}


def test_the_next_member_writes_the_result_when_one_dies_writing_it(count, plan):
    plan.crash("export")
    output = count(workers=2)
    assert plan.fired == [0]
    assert len([how for how in endings(output).values() if "SIGKILL" in how]) == 1


# ---- joining and leaving ----------------------------------------------------------------------


def test_a_standby_takes_the_place_of_a_lost_worker(disturbed, plan, undisturbed):
    plan.hold("step", "joining-worker-2", worker="worker-1", version=5)
    plan.crash("step", worker="worker-1", version=5)
    output = disturbed("--num_workers=2", "--standby_workers=1")
    assert ["worker-0", "worker-1"] in ran(output)
    assert ["worker-0", "worker-2"] in ran(output)
    assert digest(output) == undisturbed


def test_a_worker_told_to_end_leaves_at_a_step_with_status_0_and_nobody_waits(count, plan):
    plan.tell("step", worker="worker-1", version=20)
    output = count()
    (text,) = [text for text in notes(output) if "leaves" in text]
    assert text.startswith("worker-1 leaves at step 2")
    assert "SIGTERM" in text
    assert endings(output)["worker-1"] == "exit status 0"
    # It left at a step: the others had its version, and no replica was sent.
    second = events(output, "generation")[1]
    assert second["members"][:2] == ["worker-0", "worker-2"]


def test_the_last_worker_that_leaves_saves_what_it_has(count, plan):
    plan.tell("step", worker="worker-0", version=25)
    output = count("--checkpoint_every=1h", workers=1)
    assert any("goes on from the checkpoint of step 2" in text for text in notes(output))


# ---- masters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("also", ["nobody", "the worker", "another worker"])
def test_a_master_can_die_alone_or_with_workers(count, plan, also):
    plan.crash_master("step", worker="worker-1", version=15, also_self=also == "the worker")
    if also == "another worker":
        plan.crash("reducing", worker="worker-2", version=15)
    output = count()
    assert 0 in plan.fired
    assert any("new master takes over" in text for text in notes(output))


def test_a_master_can_die_while_the_result_is_being_written(count, plan):
    plan.crash_master("export")
    count(workers=2)
    assert plan.fired == [0]


# ---- checkpoints ------------------------------------------------------------------------------


def test_when_all_workers_die_new_ones_go_on_from_the_checkpoint(count, plan):
    plan.crash("step", worker="worker-0", version=25).crash("step", worker="worker-1", version=25)
    output = count(workers=2)
    assert plan.fired == [0, 1]
    resumed = [text for text in notes(output) if "goes on from the checkpoint of step" in text]
    assert resumed
    assert (output / "checkpoints").is_dir()


def training(output, data, *arguments, plan=None, model_def="faulty.Conv"):
    return (
        "train",
        f"--model_zoo={support.ZOO}",
        f"--model_def={model_def}",
        f"--data={data}",
        f"--output={output}",
        *([f"--params={plan.param}"] if plan else []),
        *CONV,
        *arguments,
    )


@pytest.fixture(scope="module")
def failed(run, digits, tmp_path_factory):
    """A training that has ended before its time, of which checkpoints are left."""
    directory = tmp_path_factory.mktemp("failed")
    plan = faults.Plan(directory / "plan").fail(version=14)
    output = directory / "output"
    ended = run(
        *training(output, digits.train, "--checkpoint_every=5", "--max_failures=1", plan=plan)
    )
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("error: create_loss: scripted")
    assert ended.running == []
    assert not (output / "trained_model.pb").exists()
    # The one of step 10 may have given way to the last one, of the step before the failure.
    names = sorted(path.name for path in (output / ".elasticdl" / "checkpoints").iterdir())
    assert names[0].endswith("000000000005.safetensors")
    assert names[-1].endswith("000000000014.safetensors")
    return output, plan


@pytest.fixture
def leftover(failed, tmp_path):
    """A copy of it, with the arguments that continue it."""
    output, plan = failed
    shutil.copytree(output, tmp_path / "output")
    return tmp_path / "output", plan


def test_the_same_command_goes_on_with_another_number_of_workers(
    run, digits, leftover, undisturbed
):
    output, plan = leftover
    ended = run(*training(output, digits.train, "--num_workers=2", plan=plan))
    assert ended.status == 0, ended.err
    assert "goes on from the checkpoint of step 14" in ended.err
    assert digest(output) == undisturbed
    # The history is of both, each step once.
    versions = [line["version"] for line in support.history(output, "train")]
    assert versions == sorted(set(versions))


def test_a_half_written_checkpoint_is_passed_over_by_name(run, digits, leftover, undisturbed):
    output, plan = leftover
    newest = max((output / ".elasticdl" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    ended = run(*training(output, digits.train, plan=plan))
    assert ended.status == 0, ended.err
    assert f"A checkpoint is passed over: {newest}" in ended.err
    assert re.search(r"goes on from the checkpoint of step (5|10)\.", ended.err)
    assert digest(output) == undisturbed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--batch_size=24"], "batch_size: expected 48, as in the checkpoint; got 24"),
        (["--model_def=faulty.Dense"], "model_def: expected 'faulty.Conv', as in the checkpoint"),
        (["--data=DATA/test-*.recordio"], "data: expected"),
        (["--seed=3"], "seed: expected 0"),
    ],
)
def test_a_changed_model_or_data_is_refused_by_name(run, digits, leftover, changed, named):
    output, plan = leftover
    directory = os.path.dirname(digits.train)
    changed = [argument.replace("DATA", directory) for argument in changed]
    ended = run(*training(output, digits.train, *changed, plan=plan))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert named in line
    assert "--restart" in line
    assert max((output / ".elasticdl" / "checkpoints").iterdir()).name.endswith("14.safetensors")


def test_restart_begins_anew(run, digits, leftover, undisturbed):
    output, plan = leftover
    ended = run(*training(output, digits.train, "--restart", plan=plan))
    assert ended.status == 0, ended.err
    assert "goes on" not in ended.err
    assert digest(output) == undisturbed


def test_another_training_begins_with_the_weights(run, digits, failed, tmp_path):
    output, _ = failed
    ended = run(
        *training(
            tmp_path / "warm",
            digits.train,
            f"--from_checkpoint={output}",
            "--optimizer=sgd",
            "--max_steps=1",
            model_def="digits.Conv",
        )
    )
    assert ended.status == 0, ended.err
    assert "begins with the weights of" in ended.err
    newest = max((output / ".elasticdl" / "checkpoints").iterdir())
    before = {
        name.removeprefix("model/"): value
        for name, value in safetensors.numpy.load_file(newest).items()
    }
    for name, value in support.weights(tmp_path / "warm").items():
        if "seed" not in name:
            # One step away, and far from any initial weights.
            np.testing.assert_allclose(value, before[name], atol=0.2)


def test_storage_that_fails_delays_checkpoints_and_not_the_training(
    start, digits, plan, tmp_path, undisturbed
):
    plan.hold("step", "blocked", version=4).hold("step", "go", version=12)
    output = tmp_path / "output"
    command = start(*training(output, digits.train, "--checkpoint_every=5", "--json", plan=plan))
    reading = command.events()
    next(e for e in reading if e["event"] == "progress" and e["version"] >= 4)
    # A file where the directory belongs.
    (output / ".elasticdl" / "checkpoints").touch()
    plan.go("blocked")
    notice = next(
        e["text"] for e in reading if e["event"] == "notice" and "checkpoint:" in e["text"]
    )
    assert "training goes on" in notice
    checkpoints = output / ".elasticdl" / "checkpoints"
    checkpoints.unlink()
    # It is tried again and again; the job is over soon.
    while not any(checkpoints.glob("[!.]*")):
        threading.Event().wait(0.02)
    plan.go("go")
    assert [event for event in reading][-1]["event"] == "result"
    assert command.end().status == 0
    assert digest(output) == undisturbed
    assert events(output, "checkpoint")


# ---- without a command ------------------------------------------------------------------------


def test_workers_without_a_command_are_taken_over_by_the_same_command(
    start, digits, plan, tmp_path, undisturbed
):
    plan.hold("step", "go", version=10)
    output = tmp_path / "output"
    command = training(output, digits.train, "--num_workers=2", "--standby_workers=0", plan=plan)
    first = start(*command, "--json")
    until_version(first, 10)
    first.process.kill()
    first.process.wait()
    wait_until_gone("elasticdl.master", first)
    second = start(*command, "--json")
    reading = second.events()
    name = next(event for event in reading if event["event"] == "started")["job_name"]
    taken = next(e["text"] for e in reading if e["event"] == "notice" and "takes over" in e["text"])
    assert taken == "A new master takes over 2 workers."
    plan.go("go")
    *_, result = reading
    assert result["event"] == "result"
    assert second.end().status == 0
    assert digest(output) == undisturbed
    assert name in (output / "trained_model.json").read_text()
    assert first.running() == []
    # One generation, before and after: nobody had to regroup.
    assert ran(output) == [["worker-0", "worker-1"]]


def test_workers_without_a_command_save_and_end_after_orphan_s(
    start, run, digits, plan, tmp_path, undisturbed
):
    plan.hold("step", faults.ORPHANED, version=10)
    output = tmp_path / "output"
    command = training(
        output, digits.train, "--num_workers=2", "--standby_workers=0", "--orphan_s=0.5", plan=plan
    )
    first = start(*command, "--json")
    until_version(first, 10)
    first.process.kill()
    first.process.wait()
    wait_until_gone("elasticdl.worker", first)
    ended = run(*command)
    assert ended.status == 0, ended.err
    assert "goes on from the checkpoint of step 11." in ended.err
    assert digest(output) == undisturbed


def test_another_command_is_told_of_the_workers_that_are_there(start, run, digits, plan, tmp_path):
    plan.hold("step", "never", version=5)
    output = tmp_path / "output"
    first = start(*training(output, digits.train, plan=plan), "--json")
    until_version(first, 5)
    first.process.kill()
    first.process.wait()
    wait_until_gone("elasticdl.master", first)
    ended = run(*training(output, digits.train, "--batch_size=24", plan=plan))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert "batch_size = 48, not 24" in line
    assert "elasticdl job stop" in line
    for process in first.processes():
        process.kill()


def until_version(command, version):
    for event in command.events():
        if event["event"] == "progress" and event["version"] >= version:
            return
    raise AssertionError(command.process.stderr.read())


def wait_until_gone(module, command):
    while any(module in line for line in command.running()):
        threading.Event().wait(0.02)
