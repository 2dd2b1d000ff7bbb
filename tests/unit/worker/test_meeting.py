"""Members meet: all hear all, or all go."""

import contextlib
import socket
import threading

import pytest

from elasticdl.worker import meeting


@pytest.fixture(scope="module")
def place():
    return meeting.Meeting("127.0.0.1")


@pytest.fixture
def visit(place, request):
    """Comes to a meeting of so many, under the test's name."""
    visits = []

    def visit(size, name=request.node.name):
        visits.append(meeting.Visit(place.address, name, size))
        return visits[-1]

    yield visit
    for each in visits:
        each.close()


def all_of(visit, size):
    """So many visits, who all have heard of each other."""
    visits = [visit(size) for _ in range(size)]
    for number, each in enumerate(visits):
        each.say(str(number), bytes([number]))
    for each in visits:
        each.hear()
    return visits


def test_each_hears_what_all_have_said(visit):
    first, second, third = visits = [visit(3) for _ in range(3)]
    first.say("0", b"\x00\xff")
    third.say("2", b"")
    second.say("1", b"one" * 100_000)
    said = {"0": b"\x00\xff", "1": b"one" * 100_000, "2": b""}
    assert [each.hear() for each in visits] == [said] * 3
    assert not any(each.dispersed for each in visits)


def test_generations_meet_apart(visit):
    visits = {name: [visit(2, name), visit(2, name)] for name in ("t1-g7", "t2-g7")}
    for number in range(2):
        for name, members in visits.items():
            members[number].say(str(number), name.encode())
    for name, members in visits.items():
        for member in members:
            assert set(member.hear().values()) == {name.encode()}


def test_when_one_is_lost_before_all_have_come_none_stays(visit):
    first, second = visit(3), visit(3)
    first.say("0", b"")
    second.say("1", b"")
    second.close()
    with pytest.raises(meeting.Dispersed, match="left before all had come"):
        first.hear()
    late = visit(3)
    late.say("2", b"")
    with pytest.raises(meeting.Dispersed):
        late.hear()


@pytest.mark.parametrize("end", ["close", "disperse"])
def test_when_one_is_lost_later_the_others_see_it(visit, end):
    first, second, third = all_of(visit, 3)
    getattr(second, end)()
    for each in (first, third):
        while not each.dispersed:
            pass


def test_who_leaves_in_order_disturbs_nobody(visit):
    first, second, third = all_of(visit, 3)
    second.leave()
    all_of(lambda size: visit(size, "others"), 2)  # by then, the meeting has seen it
    assert not first.dispersed
    assert not third.dispersed


def test_waiting_ends_from_another_thread(visit):
    waiting = visit(2)
    waiting.say("0", b"")
    threading.Thread(target=waiting.disperse).start()
    with pytest.raises(meeting.Dispersed):
        waiting.hear()


@pytest.mark.parametrize("line", [b"\n", b"GET / HTTP/1.1\n", b"[]\n", b'{"name": 1}\n', b""])
def test_who_says_something_else_is_sent_away(place, visit, line):
    host, port = place.address.split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(line)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(1) == b""
    all_of(visit, 2)


def test_generations_of_long_ago_are_forgotten(place, visit, monkeypatch):
    monkeypatch.setattr(meeting, "_REMEMBERED", 3)
    for number in range(10):
        all_of(lambda size, name=f"g{number}": visit(size, name), 2)
    assert list(place._circles) == ["g7", "g8", "g9"]


def test_a_place_that_is_no_more_is_told(visit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        guest = meeting.Visit(address, "t0-g1", 2)
    with pytest.raises(OSError, match="refused"):
        meeting.Visit(address, "t0-g1", 2)
    with contextlib.closing(guest), pytest.raises(meeting.Dispersed):
        guest.hear()
