"""Collectives among real processes, some of which come late, stop or die."""

import gc
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from elasticdl.core import membership
from elasticdl.worker import group

PEER = str(pathlib.Path(__file__).parent / "peer.py")


class Peer:
    """Another member; it is told what to do and answers."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, do, **order):
        self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def stop(self):
        """Returns when the process has stopped."""
        self.told("stop")
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def meeting():
    return group.Meeting("127.0.0.1")


@pytest.fixture(scope="module")
def start():
    """Starts peers, which end with the module."""
    peers = []

    def started(count):
        new = [Peer() for _ in range(count)]
        peers.extend(new)
        for peer in new:
            peer.meeting = peer.answer()["meeting"]
        return new

    yield started
    for peer in peers:
        peer.kill()


@pytest.fixture(scope="module")
def peers(start):
    return start(2)


_numbers = iter(range(1, 1000))


def together(meeting, peers, given_up=lambda: False, rank=0):
    """This process and `peers` as members of a new generation."""
    members = [f"worker-{n}" for n in range(len(peers) + 1)]
    generation = membership.Generation(
        next(_numbers),
        tuple(members),
        rendezvous=meeting.address if rank == 0 else peers[0].meeting,
    )
    others = [other for other in range(len(members)) if other != rank]
    for other, peer in zip(others, peers, strict=True):
        peer.told(
            "join",
            number=generation.number,
            members=members,
            rank=other,
            rendezvous=generation.rendezvous,
        )
    return group.Group(generation, rank, "127.0.0.1", given_up)


def floats(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_members_add_and_find_maxima(meeting, peers):
    joined = together(meeting, peers)
    assert (joined.rank, joined.size) == (0, 3)
    for do, operation, expected in (("sum", group.SUM, [111, -2]), ("max", group.MAX, [100, 3])):
        peers[0].told(do, numbers=[10, 3])
        peers[1].told(do, numbers=[100, -6])
        buffer = floats(1, 1)
        joined.all_reduce(buffer, operation)
        assert buffer.tolist() == expected
        assert [peer.answer()["numbers"] for peer in peers] == [expected] * 2


def test_any_member_is_heard_by_all(meeting, peers):
    joined = together(meeting, peers)
    for source, mine, theirs in ((0, b"from here", None), (2, None, "from the last one")):
        for rank, peer in enumerate(peers, 1):
            peer.told("broadcast", content=theirs if rank == source else None, source=source)
        text = mine.decode() if mine else theirs
        assert joined.broadcast(mine, source) == text.encode()
        assert [peer.answer()["content"] for peer in peers] == [text] * 2


def test_the_meeting_is_with_whoever_has_rank_0(meeting, peers):
    joined = together(meeting, peers[:1], rank=1)
    peers[0].told("sum", numbers=[1])
    buffer = floats(2)
    joined.all_reduce(buffer)
    assert buffer.tolist() == [3]
    assert peers[0].answer()["numbers"] == [3]


def test_a_member_that_comes_late_is_waited_for(meeting, peers):
    """Several times, `wait` comes back without a result; the operation goes on."""
    asked = []

    def given_up():
        asked.append(True)
        if len(asked) == 4:
            peers[0].told("sum", numbers=[5.0] * 100_000)
        return False

    joined = together(meeting, peers[:1], given_up)
    buffer = torch.ones(100_000, dtype=torch.float64)
    joined.all_reduce(buffer)
    assert len(asked) >= 4
    assert buffer.unique().tolist() == [6]
    assert set(peers[0].answer()["numbers"]) == {6}
    peers[0].told("sum", numbers=[1])
    joined.all_reduce(one := floats(1))
    assert one.tolist() == [2]
    peers[0].answer()


def test_a_killed_member_breaks_the_group_at_once(meeting, start):
    (peer,) = start(1)
    asked = []

    def given_up():
        asked.append(True)
        if len(asked) == 2:
            peer.kill()
        return False

    joined = together(meeting, [peer], given_up)
    peer.told("sum", numbers=[1])
    joined.all_reduce(floats(1))
    with pytest.raises(group.Broken):
        joined.all_reduce(floats(1))
    assert len(asked) <= 4  # slices
    with pytest.raises(group.Broken):
        joined.all_reduce(floats(1))
    with pytest.raises(group.Broken):
        joined.broadcast(b"content", 0)


def test_a_given_up_group_is_left_behind(meeting, peers, start):
    """Its peer hangs; neither what follows nor the group's end waits for it."""
    (hanging,) = start(1)
    asked = []

    def given_up():
        asked.append(True)
        return len(asked) == 3

    joined = together(meeting, [hanging, peers[0]], given_up)
    for peer in (hanging, peers[0]):
        peer.told("sum", numbers=[1])
    joined.all_reduce(floats(1))
    peers[0].answer()
    hanging.stop()
    before = len(group._abandoned)
    with pytest.raises(group.Broken, match="given up"):
        joined.all_reduce(torch.ones(1_000_000))
    assert len(asked) == 3
    # Else the next lines took as long as the operation's patience.
    assert len(group._abandoned) == before + 1
    del joined
    gc.collect()

    second = together(meeting, peers[1:])
    peers[1].told("sum", numbers=[2])
    buffer = floats(1)
    second.all_reduce(buffer)
    assert buffer.tolist() == [3]
    assert peers[1].answer()["numbers"] == [3]
