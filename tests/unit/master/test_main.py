"""The master's process lives as long as its command, or its job; the job outlives it."""

import asyncio
import errno
import io
import json
import os
import signal
import subprocess
import sys

import grpc
import pytest

from elasticdl.cluster import registry
from elasticdl.config import JobConfig
from elasticdl.data import recordio
from elasticdl.master import __main__
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc


class Command:
    """What a command does with the master that it has started."""

    def __init__(self, data, output, state, again=""):
        config = JobConfig(
            kind="train", data=str(data), output=str(output), model_def="m.M", job_name="a-job"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elasticdl.master"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(state)},
        )
        order = {"config": config.to_json(), "start_workers": False, "again": again}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.said = json.loads(self.process.stdout.readline())
        self.client = rpc.Client(self.said.get("address", "127.0.0.1:1"))

    def status(self):
        return self.client.call("Status", pb.StatusRequest())

    def leave(self):
        """Lets the master go; its exit status and what it wrote on standard error."""
        _, err = self.process.communicate()
        return self.process.returncode, err


@pytest.fixture
def command(tmp_path):
    started = []

    def command(data, **options):
        started.append(Command(data, tmp_path / "new" / "out", tmp_path / "state", **options))
        return started[-1]

    yield command
    for each in started:
        each.client.close()
        with each.process as process:
            process.kill()


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.recordio"
    with recordio.Writer(str(path)) as writer:
        writer.write(b"record")
    return path


@pytest.fixture
def work(tmp_path):
    return tmp_path / "new" / "out" / ".elasticdl"


def noted(tmp_path):
    """The names of the jobs that are noted as running."""
    return [each.job_name for each in registry.entries({"XDG_STATE_HOME": str(tmp_path / "state")})]


def test_a_command_that_is_gone_leaves_its_job_to_the_next_master(command, data, tmp_path, work):
    started = command(data)
    assert started.said["work"] == str(work)
    assert started.status().phase == "starting"
    assert json.loads((work / "master.json").read_text()) == {
        "address": started.said["address"],
        "term": 1,
    }
    assert started.leave()[0] == 0
    assert (work / "job.json").exists()
    assert noted(tmp_path) == ["a-job"]

    again = command(data, again=str(work))
    assert again.status().term == 2
    assert json.loads((work / "master.json").read_text())["term"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_master_that_is_told_to_end_hands_over(command, data, tmp_path, work, number):
    started = command(data)
    started.process.send_signal(number)
    assert started.process.wait() == 0
    assert (work / "job.json").exists()
    assert noted(tmp_path) == ["a-job"]
    # The client goes on at the next one, which the locator names.
    again = command(data, again=str(work))
    client = rpc.Client(str(work / "master.json"))
    assert client.call("Status", pb.StatusRequest()).term == 2
    client.close()
    assert again.status().phase == "starting"


def test_the_end_of_a_job_can_be_asked_for_until_the_command_leaves(command, data, tmp_path):
    started = command(data)
    started.client.call("Stop", pb.StopRequest(reason="Enough."))
    while (status := started.status()).phase != "cancelled":
        pass
    assert status.reason == "Enough."
    assert started.status() == status
    assert noted(tmp_path) == []
    assert started.leave()[0] == 0
    assert not (tmp_path / "new").exists()


def test_whoever_watches_a_job_hears_of_its_end_though_the_command_has_left(command, data):
    started = command(data)
    # A connection of its own, as that of another process is.
    own = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(started.said["address"], options=own)
    other = elasticdl_pb2_grpc.MasterStub(channel)
    assert other.Status(pb.StatusRequest()).phase == "starting"
    other.Stop(pb.StopRequest(reason="Enough."))
    while started.status().phase != "cancelled":
        pass
    started.process.stdin.close()
    assert other.Status(pb.StatusRequest()).phase == "cancelled"
    assert started.process.wait() == 0
    channel.close()


def test_what_cannot_begin_is_said_in_one_line(command, tmp_path):
    started = command(tmp_path / "nothing")
    assert list(started.said) == ["error"]
    assert started.said["error"].startswith("data: expected a file")
    assert "\n" not in started.said["error"]
    assert started.leave() == (2, "")
    assert not (tmp_path / "new").exists()


def test_a_master_that_cannot_say_where_it_is_says_that_and_leaves_nothing(
    data, tmp_path, work, monkeypatch, capsys
):
    def full(path, address, term):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rpc, "write_locator", full)
    output = tmp_path / "new" / "out"
    config = JobConfig(kind="train", data=str(data), output=str(output), model_def="m.M")
    order = {"config": config.to_json(), "start_workers": False}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order) + "\n"))
    assert asyncio.run(__main__._main()) == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": f"output: {work / 'master.json'} cannot be written: No space left on device."
    }
    assert not (tmp_path / "new").exists()


def test_a_second_job_at_an_output_is_refused_while_the_first_lives(command, data):
    first = command(data)
    assert "is being written by job a-job" in command(data).said["error"]
    assert first.status().phase == "starting"
    first.leave()
    assert "address" in command(data).said


def test_the_master_imports_neither_tensorflow_nor_torch():
    code = (
        "import sys; import elasticdl.master.__main__; "
        "sys.exit(sorted({'keras', 'tensorflow', 'torch'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
