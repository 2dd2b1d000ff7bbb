"""Collectives among real processes, some of which come late, stop or die."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

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
        self.stopped()

    def stopped(self):
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def kill(self):
        self.process.kill()
        if not self.process.stdin.closed:
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


def together(meeting, peers, given_up=lambda: False, rank=0, **options):
    """This process and `peers` as members of a new generation."""
    generation, term = invited(meeting, peers, rank, **options)
    return group.Group(generation, rank, "127.0.0.1", given_up, term=term)


def invited(meeting, peers, rank=0, size=None, term=0, signal_on_the_way=0):
    """A new generation, which its other members, `peers`, already build a group of."""
    members = [f"worker-{n}" for n in range(size or len(peers) + 1)]
    generation = membership.Generation(
        next(_numbers),
        tuple(members),
        rendezvous=meeting.address if rank == 0 else peers[0].meeting,
    )
    others = [other for other in range(len(members)) if other != rank]
    for other, peer in zip(others, peers, strict=False):
        peer.told(
            "join",
            number=generation.number,
            term=term,
            members=members,
            rank=other,
            rendezvous=generation.rendezvous,
            signal_on_the_way=signal_on_the_way,
        )
    return generation, term


def patient(answers):
    """A `given_up` that says so when it was asked so many times."""
    asked = iter(range(answers))
    return lambda: next(asked, None) is None


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


def test_large_state_is_received_in_place(meeting, peers):
    """In several pieces, the last of them short."""
    length = group._PIECE + 5
    joined = together(meeting, peers)
    for rank, peer in enumerate(peers, 1):
        peer.told("broadcast into", length=length, value=rank, source=2)
    buffer = torch.zeros(length, dtype=torch.uint8)
    memory = buffer.data_ptr()
    joined.broadcast_into(buffer, 2)
    assert (buffer.min(), buffer.max()) == (2, 2)
    assert buffer.data_ptr() == memory
    assert [peer.answer()["values"] for peer in peers] == [[2, 2], [2, 2]]


def test_nothing_is_content_too(meeting, peers):
    joined = together(meeting, peers[:1])
    peers[0].told("broadcast", content=None, source=0)
    assert joined.broadcast(b"", 0) == b""
    assert peers[0].answer()["content"] == ""
    joined.broadcast_into(torch.empty(0, dtype=torch.uint8), 0)


def test_large_state_can_be_given_up_between_its_pieces(meeting, peers):
    joined = together(meeting, peers[:1])
    length = 2 * group._PIECE
    peers[0].told("broadcast into", length=length, value=1, source=0)
    asked = []

    def given_up():
        asked.append(True)
        return len(asked) > 1

    joined._given_up = given_up
    with pytest.raises(group.Broken, match="given up"):
        joined.broadcast_into(torch.zeros(length, dtype=torch.uint8), 0)
    assert "broken" in peers[0].answer()


def test_masters_may_give_the_same_number(meeting, peers):
    joined = together(meeting, peers[:1], term=3)
    assert joined.name == f"t3-g{next(_numbers) - 1}"
    peers[0].told("sum", numbers=[1])
    joined.all_reduce(buffer := floats(2))
    assert buffer.tolist() == [3]
    assert peers[0].answer()["numbers"] == [3]


@pytest.mark.parametrize("length", [1, 3_000_000])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_member_breaks_the_group_for_all_at_once(meeting, start, peers, rank, length):
    """The others wait for it, in whichever place it is; nobody gives the generation up."""
    (victim,) = start(1)
    survivor = peers[rank % 2]
    asked = []

    def given_up():
        asked.append(True)
        if len(asked) == 3:
            victim.kill()
        return False

    # The victim is before this process once, and after it otherwise.
    others = [survivor, victim] if rank == 1 else [victim, survivor]
    joined = together(meeting if rank == 0 else None, others, rank=rank)
    in_touch(joined, others)
    joined._given_up = given_up
    survivor.told("sum ones", length=length)
    with pytest.raises(group.Broken):
        joined.all_reduce(torch.ones(length))
    assert "broken" in survivor.answer()
    for further in (lambda: joined.all_reduce(floats(1)), lambda: joined.broadcast(b"content", 0)):
        with pytest.raises(group.Broken, match="closed"):
            further()


@pytest.mark.parametrize("length", [1, 3_000_000])
def test_a_member_that_is_killed_in_the_middle_breaks_the_group(meeting, start, peers, length):
    (victim,) = start(1)
    joined = together(meeting, [victim, peers[0]])
    in_touch(joined, [victim, peers[0]])
    for peer in (victim, peers[0]):
        peer.told("sum ones", length=length)
    victim.kill()
    with pytest.raises(group.Broken):
        joined.all_reduce(torch.ones(length))
    assert "broken" in peers[0].answer()


def test_a_given_up_group_is_left_behind(meeting, peers, start):
    """Its peer hangs; neither what follows nor the group's end waits for it."""
    (hanging,) = start(1)
    joined = together(meeting, [peers[0], hanging])
    in_touch(joined, [peers[0], hanging])
    hanging.stop()
    before = threading.enumerate()
    joined._given_up = patient(3)
    peers[0].told("sum ones", length=1_000_000)
    with pytest.raises(group.Broken, match="given up"):
        joined.all_reduce(torch.ones(1_000_000))
    # It waits for this member, which has given it up.
    assert "broken" in peers[0].answer()
    adds_up(meeting, peers[:1])
    for ending in threading.enumerate():
        if ending.name == group._ENDING and ending not in before:
            ending.join(60)
            assert not ending.is_alive()


def test_who_closes_a_group_breaks_it_for_the_others(meeting, peers):
    joined = together(meeting, peers[:1])
    peers[0].told("sum", numbers=[1])
    joined.close()
    joined.close()
    assert "broken" in peers[0].answer()


def adds_up(meeting, peers):
    """A new generation of this process and `peers` works."""
    in_touch(together(meeting, peers), peers)


def in_touch(joined, peers):
    for peer in peers:
        peer.told("sum", numbers=[2])
    joined.all_reduce(buffer := floats(1))
    assert buffer.tolist() == [1 + 2 * len(peers)]
    assert [peer.answer()["numbers"] for peer in peers] == [buffer.tolist()] * len(peers)


# ---- connecting ---------------------------------------------------------------------------------


def test_a_member_that_does_not_come_can_be_given_up(meeting, peers):
    with pytest.raises(group.Broken, match="given up"):
        together(meeting, peers[:1], patient(3), size=3)
    # Whoever has come does not wait either.
    assert "broken" in peers[0].answer()
    adds_up(meeting, peers)


def test_a_meeting_that_hangs_can_be_given_up(meeting, start, peers):
    (hanging,) = start(1)
    hanging.stop()
    generation, _ = invited(None, [hanging], rank=1)
    with pytest.raises(group.Broken, match="given up"):
        group.Group(generation, 1, "127.0.0.1", patient(3))
    adds_up(meeting, peers)


def test_nobody_where_the_meeting_should_be_is_noticed_at_once():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    generation = membership.Generation(next(_numbers), ("a", "b"), rendezvous=address)
    with pytest.raises(group.Broken, match="refused"):
        group.Group(generation, 1, "127.0.0.1", lambda: False)
