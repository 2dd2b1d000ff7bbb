"""What carries collectives; NCCL itself needs a GPU, and Gloo stands for it here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elasticdl.worker import transport

STORY = """
import sys, threading
sys.path.insert(0, {directory!r})
import gpu, torch
gpu.pretend()
from elasticdl.core import membership
from elasticdl.worker import group, transport

meeting = group.Meeting("127.0.0.1")
rendezvous = meeting.address if {rank} == 0 else sys.stdin.readline().strip()
print(meeting.address, flush=True)
joined = group.Group(
    membership.Generation(1, ("worker-0", "worker-1"), rendezvous=rendezvous),
    {rank}, "127.0.0.1", lambda: False, connect=transport.Nccl,
)
buffer = torch.tensor([1.0 + {rank}, 5.0])
joined.all_reduce(buffer)
print(buffer.tolist(), flush=True)
print(joined.broadcast(b"from 1" if {rank} == 1 else None, 1), flush=True)
sys.stdin.readline()
if {rank} == 0:
    try:
        joined.all_reduce(buffer)
    except group.Broken as error:
        print("broken", flush=True)
    for thread in threading.enumerate():
        if thread.name == group._ENDING:
            thread.join()
    print(gpu.Nccl.last.aborted, flush=True)
"""


@pytest.fixture
def member():
    started = []

    def start(rank):
        story = STORY.format(directory=str(Path(__file__).parent), rank=rank)
        process = subprocess.Popen(
            [sys.executable, "-c", story],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process):
    return process.stdout.readline().strip()


def say(process, text=""):
    process.stdin.write(text + "\n")
    process.stdin.flush()


def test_gpus_are_joined_and_a_member_that_is_killed_breaks_their_group(member):
    first, second = member(0), member(1)
    say(second, line(first))
    line(second)
    for process in (first, second):
        assert line(process) == "[3.0, 10.0]"
        assert line(process) == "b'from 1'"
    second.kill()
    say(first)
    assert line(first) == "broken"
    assert line(first) == "True"


def test_a_buffer_elsewhere_is_copied_there_and_back(monkeypatch):
    nccl = transport.Nccl.__new__(transport.Nccl)
    there, buffer = torch.tensor([3.0]), torch.tensor([1.0])

    class Done:
        def is_completed(self):
            return True

        def wait(self):
            there.add_(1.0)

    class Well:
        def get_error(self):
            return torch._C._distributed_c10d.ErrorType.SUCCESS

    nccl._group, nccl._device = Well(), torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    assert nccl.finished(transport._Copied(Done(), there, buffer))
    assert buffer.tolist() == [4.0]


def test_a_build_that_can_encrypt_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert not transport.encrypt(tmp_path)  # as the one that the tests run with
    assert os.environ == {}
    (tmp_path / "lib").mkdir()
    library = bytes(transport._READ - 5) + b"GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY"
    (tmp_path / "lib" / "libtorch_cpu.so").write_bytes(library)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert transport.encrypt(Path("/security"))
    assert os.environ == {
        "GLOO_DEVICE_TRANSPORT": "TCP_TLS",
        "GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY": "/security/tls.key",
        "GLOO_DEVICE_TRANSPORT_TCP_TLS_CERT": "/security/tls.crt",
        "GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_FILE": "/security/ca.crt",
    }
