"""Calls have deadlines, and are made again, to the next master too, where they did not arrive."""

import asyncio
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import grpc
import pytest

from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc

MASTER = str(pathlib.Path(__file__).parent / "master.py")


class Master(elasticdl_pb2_grpc.MasterServicer):
    """Answers Status, and Join if it may; fails at Heartbeat; gives orders until it has none."""

    def __init__(self, joins=False):
        self.calls = 0
        self.called = threading.Event()
        self.orders = asyncio.Queue()
        self._joins = joins

    async def Status(self, request, context):
        self.calls += 1
        return pb.JobStatus(job_name="there")

    async def Join(self, request, context):
        self.calls += 1
        self.called.set()
        if not self._joins:
            await asyncio.Event().wait()
        return pb.JoinReply(generation=7, term=request.term)

    async def Follow(self, request, context):
        self.called.set()
        while (given_up := await self.orders.get()) is not None:
            yield pb.Orders(given_up=given_up)

    async def Heartbeat(self, request, context):
        self.calls += 1
        await context.abort(grpc.StatusCode.INTERNAL, "it failed")


class Serving:
    """A server in a thread of its own."""

    def __init__(self, address="127.0.0.1:0", joins=False):
        self._given = address
        self._joins = joins
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        self.master = Master(self._joins)
        server, self.address = await rpc.serve(self.master, self._given)
        self._loop = asyncio.get_running_loop()
        self._down = asyncio.Event()
        self._up.set()
        await self._down.wait()
        await server.stop(grace=None)

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(30)
        return self

    def order(self, given_up):
        self._loop.call_soon_threadsafe(self.master.orders.put_nowait, given_up)

    def __exit__(self, *error):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._down.set)
            self._thread.join()


@pytest.fixture
def client():
    made = []

    def client(address):
        made.append(rpc.Client(address))
        return made[-1]

    yield client
    for each in made:
        each.close()


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_call_is_answered(client):
    with Serving() as serving:
        assert client(serving.address).call("Status", pb.StatusRequest()).job_name == "there"


def test_no_answer_within_the_deadline_is_unreachable(client):
    with Serving() as serving:
        caller = client(serving.address)
        with pytest.raises(rpc.Unreachable, match=f"Join: no answer from {serving.address}"):
            caller.call("Join", pb.JoinRequest(), deadline_s=0.2)
        assert serving.master.calls <= 1  # a machine that is busy may not even have begun


def test_nobody_there_within_the_deadline_is_unreachable(client):
    with pytest.raises(rpc.Unreachable):
        client(free_address()).call("Status", pb.StatusRequest(), deadline_s=0.3)


def test_a_master_that_comes_up_later_is_found(client):
    address = free_address()
    caller = client(address)
    answers = []
    calling = threading.Thread(
        target=lambda: answers.append(caller.call("Status", pb.StatusRequest(), deadline_s=60))
    )
    with pytest.raises(rpc.Unreachable):
        caller.call("Status", pb.StatusRequest(), deadline_s=0.1)
    calling.start()
    with Serving(address):
        calling.join()
    assert [answer.job_name for answer in answers] == ["there"]


def test_a_master_that_is_back_is_found_by_the_same_client(client):
    address = free_address()
    caller = client(address)
    for _ in range(2):
        with Serving(address):
            assert caller.call("Status", pb.StatusRequest(), deadline_s=60).job_name == "there"


def test_a_call_that_the_master_fails_at_is_not_made_again(client):
    with Serving() as serving:
        caller = client(serving.address)
        caller.call("Status", pb.StatusRequest())
        with pytest.raises(grpc.RpcError) as raised:
            caller.call("Heartbeat", pb.HeartbeatRequest())
        assert raised.value.code() == grpc.StatusCode.INTERNAL
        assert serving.master.calls == 2


def test_large_messages_pass(client):
    notice = "x" * (8 << 20)
    with Serving() as serving, pytest.raises(grpc.RpcError) as raised:
        client(serving.address).call("Heartbeat", pb.HeartbeatRequest(notices=[notice]))
    assert raised.value.code() == grpc.StatusCode.INTERNAL


# ---- masters that follow each other -------------------------------------------------------------


@pytest.fixture
def locator(tmp_path):
    return str(tmp_path / "master.json")


@pytest.fixture
def hidden():
    """A master in a process of its own that answers nothing: the process, and its address."""
    with subprocess.Popen([sys.executable, MASTER], stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


class Waiting:
    """A Join that waits in a thread."""

    def __init__(self, caller, deadline_s=3600):
        self._caller = caller
        self._deadline_s = deadline_s
        self._thread = threading.Thread(target=self._join)
        self._thread.start()

    def _join(self):
        try:
            self.reply = self._caller.call(
                "Join", pb.JoinRequest(worker="worker-0"), deadline_s=self._deadline_s
            )
        except rpc.Unreachable as error:
            self.reply = error

    def ended(self):
        self._thread.join(60)
        return self.reply


def test_a_locator_says_where_the_master_is(client, locator):
    with Serving() as serving:
        rpc.write_locator(locator, serving.address, 3)
        caller = client(locator)
        assert (caller.address, caller.term) == (serving.address, 3)
        assert caller.call("Status", pb.StatusRequest()).job_name == "there"
    assert [path.name for path in pathlib.Path(locator).parent.iterdir()] == ["master.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"address": "a:1"}', '{"term": "x"}'])
def test_without_a_locator_no_master_is_known(client, locator, content):
    if content is not None:
        pathlib.Path(locator).write_text(content)
    caller = client(locator)
    assert (caller.address, caller.term) == ("", 0)
    with pytest.raises(rpc.Unreachable, match="Status: no answer from any master"):
        caller.call("Status", pb.StatusRequest(), deadline_s=0.05)
    with pytest.raises(rpc.Unreachable, match="any master"):
        caller.follow("Follow", pb.OrdersRequest())


def test_a_call_waits_for_the_first_master(client, locator):
    waiting = Waiting(client(locator))
    with Serving(joins=True) as serving:
        rpc.write_locator(locator, serving.address, 1)
        assert waiting.ended().generation == 7


@pytest.mark.parametrize("end", ["stops", "is killed", "hangs"])
def test_a_call_that_waits_goes_on_at_the_next_master(client, locator, hidden, end):
    process, address = hidden
    with Serving() as stopping, Serving(joins=True) as following:
        rpc.write_locator(locator, stopping.address if end == "stops" else address, 1)
        caller = client(locator)
        waiting = Waiting(caller)
        if end == "stops":
            assert stopping.master.called.wait(60)
            stopping.__exit__()
        else:
            assert process.stdout.readline() == "Join\n"
            process.send_signal(signal.SIGKILL if end == "is killed" else signal.SIGSTOP)
        rpc.write_locator(locator, following.address, 2)
        assert waiting.ended().generation == 7
        assert (caller.address, caller.term) == (following.address, 2)


def test_a_master_of_a_lower_term_is_never_gone_back_to(client, locator):
    with Serving(joins=True) as older, Serving(joins=True) as newer:
        rpc.write_locator(locator, newer.address, 5)
        caller = client(locator)
        rpc.write_locator(locator, older.address, 4)
        newer.__exit__()
        assert isinstance(Waiting(caller, deadline_s=0.3).ended(), rpc.Unreachable)
        assert (caller.address, caller.term) == (newer.address, 5)
        assert older.master.calls == 0


def test_the_next_master_may_have_the_same_address(client, locator):
    address = free_address()
    rpc.write_locator(locator, address, 1)
    caller = client(locator)
    for term in (1, 2):
        with Serving(address):
            rpc.write_locator(locator, address, term)
            assert caller.call("Status", pb.StatusRequest(), deadline_s=60).job_name == "there"
    with pytest.raises(rpc.Unreachable):
        caller.call("Status", pb.StatusRequest(), deadline_s=0.05)
    assert caller.term == 2


def test_closing_ends_calls_that_wait(client, locator):
    with Serving() as serving:
        rpc.write_locator(locator, serving.address, 1)
        caller = client(locator)
        waiting = Waiting(caller)
        assert serving.master.called.wait(60)
        caller.close()
        assert isinstance(waiting.ended(), rpc.Unreachable)
        for further in (
            lambda: caller.call("Status", pb.StatusRequest()),
            lambda: caller.follow("Follow", pb.OrdersRequest()),
        ):
            with pytest.raises(rpc.Unreachable):
                further()


# ---- streams ------------------------------------------------------------------------------------


def test_a_stream_is_followed_to_its_end(client):
    with Serving() as serving:
        for given_up in (1, 2, None):
            serving.order(given_up)
        stream = client(serving.address).follow("Follow", pb.OrdersRequest())
        assert [orders.given_up for orders in stream] == [1, 2]


@pytest.mark.parametrize("how", ["the master stops", "the master is killed", "it is cancelled"])
def test_a_stream_that_breaks_is_told(client, hidden, how):
    process, address = hidden
    with Serving() as serving:
        caller = client(address if how == "the master is killed" else serving.address)
        stream = caller.follow("Follow", pb.OrdersRequest())
        if how == "the master is killed":
            assert process.stdout.readline() == "Follow\n"
            process.kill()
        else:
            serving.order(1)
            assert next(iter(stream)).given_up == 1
            serving.__exit__() if how == "the master stops" else stream.cancel()
        with pytest.raises(rpc.Unreachable, match="Follow: no answer"):
            list(stream)


def test_nobody_to_follow_is_told(client):
    with pytest.raises(rpc.Unreachable):
        list(client(free_address()).follow("Follow", pb.OrdersRequest()))


def test_a_stream_is_cancelled_from_another_thread(client):
    with Serving() as serving:
        stream = client(serving.address).follow("Follow", pb.OrdersRequest())
        broken = []

        def follow():
            try:
                list(stream)
            except rpc.Unreachable as error:
                broken.append(error)

        following = threading.Thread(target=follow, daemon=True)
        following.start()
        assert serving.master.called.wait(60)
        stream.cancel()
        following.join(60)
        assert len(broken) == 1
