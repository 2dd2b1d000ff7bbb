"""What a worker reports reaches the master, each report once, and what the master says is heard."""

import asyncio
import queue
import threading

import pytest

from elasticdl.core.progress import Cursor, Progress
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc
from elasticdl.worker import heartbeat

PATIENCE_S = 30


class Master(elasticdl_pb2_grpc.MasterServicer):
    """Keeps what it hears."""

    def __init__(self):
        self.heard = queue.Queue()
        self.reply = pb.HeartbeatReply()

    async def Heartbeat(self, request, context):
        self.heard.put(request)
        return self.reply

    def hears(self, wanted):
        """The first request from now on that is as wanted, and all until then."""
        before = []
        while True:
            before.append(self.heard.get(timeout=PATIENCE_S))
            if wanted(before[-1]):
                return before


class Serving:
    """A master that listens, in a thread of its own."""

    def __init__(self):
        self.master = Master()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._up.wait(PATIENCE_S)

    async def _serve(self):
        server, self.address = await rpc.serve(self.master)
        self._loop = asyncio.get_running_loop()
        self._down = asyncio.Event()
        self._up.set()
        await self._down.wait()
        await server.stop(grace=None)

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._down.set)
            self._thread.join()


@pytest.fixture
def serving():
    serving = Serving()
    yield serving
    serving.close()


@pytest.fixture
def client(serving):
    client = rpc.Client(serving.address)
    yield client
    client.close()


@pytest.fixture
def beat(client):
    beat = heartbeat.Heartbeat(client, "worker-1", lambda: None)
    yield beat
    beat.close()


def report(version):
    return pb.StepReport(version=version, elements=1, steps=1)


def test_the_heart_beats_by_itself(serving, beat):
    first, second = (serving.master.hears(lambda request: True)[0] for _ in range(2))
    assert first.worker == second.worker == "worker-1"
    assert first.phase == "starting"
    assert not first.HasField("progress")


def test_where_a_worker_stands_is_said_each_time(serving, beat):
    beat.phase("member")
    beat.stands(3, Progress(7, (Cursor(1, 2, 3), Cursor())))

    def told(request):
        return request.generation == 3 and request.phase == "member"

    for _ in range(2):
        request = serving.master.hears(told)[-1]
        assert request.progress.version == 7
        assert [(c.epoch, c.slice, c.element) for c in request.progress.cursors] == [
            (1, 2, 3),
            (0, 0, 0),
        ]


def test_reports_arrive_once_and_in_order(serving, beat):
    for version in range(1, 51):
        beat.committed(report(version), 0.1, speaks=True)
        if version % 10 == 0:
            beat.evaluated(version, 5, {"loss": 0.5, "each": [1.0, 2.0]})
            beat.notice(f"notice {version}")
            beat.flush()
    beat.phase("done")
    heard = serving.master.hears(lambda request: request.phase == "done")
    versions = [step.version for request in heard for step in request.steps]
    assert versions == list(range(1, 51))
    evaluations = [each for request in heard for each in request.evaluations]
    assert [each.version for each in evaluations] == [10, 20, 30, 40, 50]
    assert evaluations[0].metrics["each"].numbers == [1.0, 2.0]
    notices = [text for request in heard for text in request.notices]
    assert notices == [f"notice {version}" for version in (10, 20, 30, 40, 50)]


def test_who_begins_to_speak_says_what_it_kept(serving, beat):
    """The speaker may be gone before its last reports were heard; the master counts each once."""
    for version in range(1, 1501):
        beat.committed(report(version), 0.1, speaks=False)
    beat.phase("quiet")
    heard = serving.master.hears(lambda request: request.phase == "quiet")
    assert not any(request.steps for request in heard)
    beat.committed(report(1501), 0.25, speaks=True)
    last = serving.master.hears(lambda request: request.steps)[-1]
    assert [step.version for step in last.steps] == list(range(502, 1502))
    assert last.learning_rate == 0.25


def test_what_the_master_says_is_heard(serving, beat):
    assert not beat.regroup
    assert not beat.stop
    serving.master.reply = pb.HeartbeatReply(regroup=True)
    beat.flush()
    assert beat.regroup
    serving.master.reply = pb.HeartbeatReply(stop=True)
    beat.flush()
    assert beat.stop
    assert not beat.regroup


def test_a_worker_whose_master_is_gone_is_orphaned_once(serving, client):
    orphaned = queue.Queue()
    beat = heartbeat.Heartbeat(client, "worker-1", lambda: orphaned.put(True), orphan_s=0.3)
    serving.master.hears(lambda request: True)
    serving.close()
    assert orphaned.get(timeout=PATIENCE_S)
    beat._thread.join(PATIENCE_S)
    assert not beat._thread.is_alive()
    with pytest.raises(rpc.Unreachable):
        beat.flush()
    assert orphaned.empty()
    beat.close()


def test_a_closed_heart_is_no_orphan(serving, client):
    orphaned = []
    beat = heartbeat.Heartbeat(client, "worker-1", lambda: orphaned.append(True), orphan_s=0.3)
    beat.close()
    serving.close()
    assert orphaned == []
