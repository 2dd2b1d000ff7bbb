"""The master's process lives as long as its job and the command that started it."""

import json
import signal
import subprocess
import sys

import pytest

from elasticdl.config import JobConfig
from elasticdl.data import recordio
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc


class Command:
    """What a command does with the master that it has started."""

    def __init__(self, data, output):
        config = JobConfig(
            kind="train", data=str(data), output=str(output), model_def="m.M", job_name="a-job"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elasticdl.master"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        order = {"config": config.to_json(), "start_workers": False}
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

    def command(data):
        started.append(Command(data, tmp_path / "new" / "out"))
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


def test_a_command_that_is_gone_takes_its_job_along(command, data, tmp_path):
    started = command(data)
    assert started.status().phase == "starting"
    assert (tmp_path / "new" / "out" / ".elasticdl" / "claim").exists()
    assert started.leave() == (0, "")
    assert not (tmp_path / "new").exists()


def test_the_end_of_a_job_can_be_asked_for_until_the_command_leaves(command, data, tmp_path):
    started = command(data)
    started.client.call("Stop", pb.StopRequest(reason="Enough."))
    while (status := started.status()).phase != "cancelled":
        pass
    assert status.reason == "Enough."
    assert started.status() == status
    assert started.leave() == (0, "")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_master_that_is_told_to_stop_says_so(command, data, number):
    started = command(data)
    started.process.send_signal(number)
    while (status := started.status()).phase != "cancelled":
        pass
    assert status.reason == "The master was told to stop."
    assert started.leave() == (0, "")


def test_what_cannot_begin_is_said_in_one_line(command, tmp_path):
    started = command(tmp_path / "nothing")
    assert list(started.said) == ["error"]
    assert started.said["error"].startswith("data: expected a file")
    assert "\n" not in started.said["error"]
    assert started.leave() == (2, "")
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
