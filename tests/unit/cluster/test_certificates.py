"""A job's processes know each other by what was made for the job, and nobody else gets in."""

import asyncio
import os
import threading

import grpc
import pytest

from elasticdl.cluster import certificates
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc


class Master(elasticdl_pb2_grpc.MasterServicer):
    def __init__(self):
        self.term = 3

    async def Heartbeat(self, request, context):
        return pb.HeartbeatReply(term=self.term)

    async def Follow(self, request, context):
        yield pb.Orders(term=self.term)


class Serving:
    """A server in a thread of its own."""

    def __init__(self, security):
        self.master = Master()
        self._security = security
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server, self.address = await rpc.serve(self.master, security=self._security)
        self._up.set()
        await self._over.wait()
        await server.stop(grace=None)

    def __enter__(self):
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture(scope="module")
def made():
    return certificates.made("job-1")


@pytest.fixture(scope="module")
def serving(made):
    with Serving(made.master) as serving:
        yield serving


def heartbeat(address, security, deadline_s=5.0):
    client = rpc.Client(address, security)
    try:
        return client.call("Heartbeat", pb.HeartbeatRequest(), deadline_s=deadline_s)
    finally:
        client.close()


def test_those_of_the_job_are_let_in(made, serving):
    assert heartbeat(serving.address, made.others).term == 3


def test_they_read_what_they_show_from_files(made, serving, tmp_path):
    for name, content in (
        ("ca.crt", made.others.authority),
        ("tls.crt", made.others.certificate),
        ("tls.key", made.others.key),
        ("token", made.others.token.encode() + b"\n"),
    ):
        (tmp_path / name).write_bytes(content)
    assert rpc.Security.read(tmp_path) == made.others
    os.unlink(tmp_path / "token")
    with pytest.raises(FileNotFoundError):
        rpc.Security.read(tmp_path)


def test_who_shows_nothing_is_not_heard(serving):
    with pytest.raises(rpc.Unreachable):
        heartbeat(serving.address, None, deadline_s=0.3)


def test_another_jobs_certificate_is_not_taken(made, serving):
    other = certificates.made("job-2")
    assert other.others.token != made.others.token
    with pytest.raises(rpc.Unreachable):
        heartbeat(serving.address, other.others, deadline_s=0.3)


def test_without_the_token_a_certificate_is_not_enough(made, serving):
    stolen = made.others
    wrong = rpc.Security(stolen.authority, stolen.certificate, stolen.key, "guessed")
    with pytest.raises(grpc.RpcError) as refused:
        heartbeat(serving.address, wrong)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(rpc.Unreachable):
        list(rpc.Client(serving.address, wrong).follow("Follow", pb.OrdersRequest()))


def test_a_master_of_another_job_is_not_believed(made):
    other = certificates.made("job-2")
    with Serving(other.master) as impostor, pytest.raises(rpc.Unreachable):
        heartbeat(impostor.address, made.others, deadline_s=0.3)


def test_a_worker_cannot_stand_for_the_master(made):
    with Serving(made.others) as impostor, pytest.raises(rpc.Unreachable):
        heartbeat(impostor.address, made.others, deadline_s=0.3)


def test_at_one_address_an_earlier_master_is_not_gone_back_to(made, serving):
    client = rpc.Client(serving.address, made.others)
    assert client.term == 0
    client.call("Heartbeat", pb.HeartbeatRequest())
    assert client.term == 3
    serving.master.term = 2
    with pytest.raises(rpc.Unreachable):
        client.call("Heartbeat", pb.HeartbeatRequest(), deadline_s=0.3)
    serving.master.term = 4
    client.call("Heartbeat", pb.HeartbeatRequest())
    assert client.term == 4
    serving.master.term = 3
    client.close()
