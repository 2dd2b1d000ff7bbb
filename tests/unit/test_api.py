"""Jobs that run on this machine are found by their names, watched, scaled and stopped."""

import json
import os
import subprocess
import sys

import pytest

from elasticdl import api
from elasticdl.cluster import registry
from elasticdl.config import JobConfig
from elasticdl.data import recordio
from elasticdl.errors import Cancelled, UserError


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def running(tmp_path):
    """A job's master, whose command is this test; nobody starts its workers."""
    with recordio.Writer(str(tmp_path / "data.recordio")) as writer:
        writer.write(b"record")
    config = JobConfig(
        kind="train",
        data=str(tmp_path / "data.recordio"),
        output=str(tmp_path / "out"),
        model_def="m.M",
        job_name="digits-1",
    )
    order = json.dumps({"config": config.to_json(), "start_workers": False})
    with subprocess.Popen(
        [sys.executable, "-m", "elasticdl.master"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as master:
        master.stdin.write(order + "\n")
        master.stdin.flush()
        master.stdout.readline()
        yield config
        master.kill()


def test_a_running_job_is_listed(running):
    [listed] = api.jobs()
    assert (listed.job_name, listed.kind, listed.phase, listed.workers) == (
        "digits-1",
        "train",
        "starting",
        0,
    )
    assert listed.output == running.output


def test_a_running_job_is_found_watched_and_stopped(running):
    job = api.attach("digits-1")
    assert job.config == running
    assert (job.status().phase, job.status().term) == ("starting", 1)
    with pytest.raises(UserError, match=r"^num_workers: this job's workers are started by"):
        job.scale(2)
    job.cancel()
    assert job.status().phase == "cancelled"
    with pytest.raises(Cancelled, match=r"^Stopped on request\.$"):
        job.wait()
    assert registry.entries(os.environ) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digits-2", "Did you mean digits-1?"), ("x", "See `elasticdl job list`.")],
)
def test_an_unknown_job_is_named_with_the_nearest(running, name, hint):
    with pytest.raises(UserError) as raised:
        api.attach(name)
    assert str(raised.value) == (
        f"job_name: expected the name of a job that runs on this machine; got {name!r}. {hint}"
    )
