"""Calls have deadlines, and are made again where they could not be delivered."""

import asyncio
import socket
import threading

import grpc
import pytest

from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc


class Master(elasticdl_pb2_grpc.MasterServicer):
    """Answers Status; never answers Join; fails at Heartbeat."""

    def __init__(self):
        self.calls = 0
        self.left = asyncio.Event()

    async def Status(self, request, context):
        self.calls += 1
        return pb.JobStatus(job_name="there")

    async def Join(self, request, context):
        self.calls += 1
        await self.left.wait()

    async def Heartbeat(self, request, context):
        self.calls += 1
        await context.abort(grpc.StatusCode.INTERNAL, "it failed")


class Serving:
    """A server in a thread of its own."""

    def __init__(self, address="127.0.0.1:0"):
        self._given = address
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        self.master = Master()
        server, self.address = await rpc.serve(self.master, self._given)
        self._loop = asyncio.get_running_loop()
        self._down = asyncio.Event()
        self._up.set()
        await self._down.wait()
        self.master.left.set()
        await server.stop(grace=None)

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *error):
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
