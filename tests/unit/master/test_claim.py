"""An output has one writer; a dead one's claim is free."""

import json
import os
import subprocess
import sys

import pytest

from elasticdl.errors import UserError
from elasticdl.master.claim import Claim

HOLDS = """
import pathlib, signal, sys
from elasticdl.master.claim import Claim
claim = Claim(pathlib.Path(sys.argv[1]), "the-output", "first-job")
print("held", flush=True)
signal.pause()
"""


def claim(path, job="second-job"):
    return Claim(path, "the-output", job)


def test_a_second_claim_is_refused_naming_the_first(tmp_path):
    path = tmp_path / "claim"
    first = claim(path, "first-job")
    with pytest.raises(UserError) as raised:
        claim(path)
    assert str(raised.value) == (
        f"output: the-output is being written by job first-job (process {os.getpid()} on "
        f"{os.uname().nodename}). Wait for it, stop it, or choose another --output."
    )
    first.release()


def test_a_claim_that_was_given_up_is_free_and_its_file_gone(tmp_path):
    path = tmp_path / "claim"
    claim(path, "first-job").release()
    assert list(tmp_path.iterdir()) == []
    second = claim(path)
    assert json.loads(path.read_text())["job_name"] == "second-job"
    second.release()


def test_a_dead_owners_claim_is_taken_over(tmp_path):
    path = tmp_path / "claim"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"job first-job \(process {owner.pid} on "):
            claim(path)
        owner.kill()
    assert "first-job" in path.read_text()
    second = claim(path)
    owner = json.loads(path.read_text())
    assert owner == {"job_name": "second-job", "pid": os.getpid(), "host": os.uname().nodename}
    second.release()


def test_processes_that_the_owner_starts_do_not_hold_it(tmp_path):
    path = tmp_path / "claim"
    first = claim(path, "first-job")
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    ):
        first.release()
        claim(path).release()


@pytest.mark.parametrize("content", ["", "no JSON", "7", "{}"])
def test_an_owner_that_does_not_say_who_it_is_is_another_job(tmp_path, content):
    path = tmp_path / "claim"
    first = claim(path, "first-job")
    path.write_text(content)
    with pytest.raises(UserError, match="the-output is being written by another job"):
        claim(path)
    first.release()


def test_a_directory_that_is_gone_is_for_the_caller_to_make(tmp_path):
    with pytest.raises(FileNotFoundError):
        claim(tmp_path / "gone" / "claim")


def test_many_that_come_and_go_never_hold_it_together(tmp_path):
    """Each takes the claim, looks whether somebody else is inside, and leaves."""
    code = """
import os, pathlib, sys
from elasticdl.errors import UserError
from elasticdl.master.claim import Claim
path, inside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
entered = 0
while entered < 100:
    try:
        claim = Claim(path, "o", "j")
    except UserError:
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    entered += 1
    inside.unlink()
    claim.release()
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "claim"), str(tmp_path / "inside")]
    many = [subprocess.Popen(arguments) for _ in range(3)]
    assert [each.wait() for each in many] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
