"""A worker ends so that nobody waits for it, and takes nothing with it that it alone had."""

import contextlib
import threading

import pytest

from elasticdl.errors import UserCodeError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import leaving

PATIENCE_S = 60
GONE = "gone"


class Master:
    """Gives its replies one by one; where one is GONE, it does not answer."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    def call(self, method, request, *, deadline_s=10.0):
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append((method, copy))
        reply = self.replies.pop(0)
        if reply is GONE:
            raise rpc.Unreachable(method)
        return reply


class Beat:
    """A heart that has reported all there was, if it can."""

    present_phase = "member"

    def __init__(self, *, reaches=True):
        self.flushed = 0
        self._reaches = reaches

    def flush(self):
        self.flushed += 1
        if not self._reaches:
            raise rpc.Unreachable("Heartbeat")


class Worker:
    """One worker's leave, and in which order things happened."""

    def __init__(self, *replies):
        self.master = Master(*replies)
        self.happened = []
        self.leaver = leaving.Leaver(self.master, "worker-1", self.ended)
        self.leaver.save = lambda: self.happened.append("saved")

    def ended(self, reason, status):
        self.happened.append(f"ended: {reason}" + (f", status {status}" if status else ""))

    @property
    def told(self):
        """Of each Leave, whether the replica was said to be saved."""
        return [request.saved for _, request in self.master.requests]


def test_a_worker_says_that_it_leaves_and_why():
    worker = Worker(pb.LeaveReply())
    worker.leaver.end("told to end")
    assert worker.happened == ["ended: told to end"]
    [(method, request)] = worker.master.requests
    assert (method, request.worker, request.reason) == ("Leave", "worker-1", "told to end")
    assert not request.saved


def test_the_last_replica_is_saved_before_it_goes():
    worker = Worker(pb.LeaveReply(save=True), pb.LeaveReply())
    worker.leaver.end("x")
    assert worker.happened == ["saved", "ended: x"]
    assert worker.told == [False, True]


def test_without_a_master_everyone_saves():
    worker = Worker(GONE)
    worker.leaver.end("x")
    assert worker.happened == ["saved", "ended: x"]


def test_a_master_that_goes_in_between_keeps_nobody():
    worker = Worker(pb.LeaveReply(save=True), GONE)
    worker.leaver.end("x")
    assert worker.happened[-1] == "ended: x"
    assert "saved" in worker.happened


def test_a_worker_without_a_replica_has_nothing_to_save():
    ended = []
    leaving.Leaver(Master(GONE), "worker-1", lambda reason, _: ended.append(reason)).end("x")
    assert ended == ["x"]


def test_a_worker_ends_whatever_happens_on_the_way():
    worker = Worker(GONE)

    def fails():
        raise OSError("no such storage")

    worker.leaver.save = fails
    with pytest.raises(OSError, match="no such storage"):
        worker.leaver.end("x")
    assert worker.happened == ["ended: x"]


# ---- two threads ------------------------------------------------------------------------------


def test_an_end_waits_for_work_on_the_replica():
    """Half a step is in no checkpoint."""
    worker = Worker(GONE)
    ending = threading.Thread(target=worker.leaver.end, args=("x",))
    with worker.leaver.working():
        ending.start()
        ending.join(0.05)
        worker.happened.append("stepped")
    ending.join(PATIENCE_S)
    assert worker.happened == ["stepped", "saved", "ended: x"]


@pytest.mark.parametrize("reply", [pb.LeaveReply(), pb.LeaveReply(save=True), GONE])
def test_a_late_end_waits_for_nothing_and_saves_nothing(reply):
    worker = Worker(reply)
    with worker.leaver.working():
        worker.leaver.end("late", True)
    assert worker.happened == ["ended: late"]
    assert worker.told == [False]


def test_nobody_works_on_a_replica_that_is_being_saved():
    worker = Worker(GONE)
    saving, working = threading.Event(), threading.Event()

    def save():
        saving.set()
        working.wait(0.05)
        worker.happened.append("saved")

    def work():
        with worker.leaver.working():
            working.set()
            worker.happened.append("stepped")

    worker.leaver.save = save
    ending = threading.Thread(target=worker.leaver.end, args=("x",))
    ending.start()
    assert saving.wait(PATIENCE_S)
    work()
    ending.join(PATIENCE_S)
    assert worker.happened == ["saved", "ended: x", "stepped"]


# ---- failures ---------------------------------------------------------------------------------


def test_what_the_users_code_raised_is_reported_once_an_attempt():
    worker, beat = Worker(pb.FailReply(again=True), pb.FailReply()), Beat()
    error = UserCodeError("loss: bad", "trace", ("a.recordio, records 0 to 9",))
    assert worker.leaver.again(beat, error, "member")
    assert not worker.leaver.again(beat, error, "evaluating")
    (_, first), (_, second) = worker.master.requests
    assert first == pb.FailRequest(
        worker="worker-1",
        kind="user_code",
        message="loss: bad",
        trace="trace",
        slices=["a.recordio, records 0 to 9"],
        phase="member",
        attempt=1,
    )
    assert (second.attempt, second.phase) == (2, "evaluating")
    # What was done before it failed is known by then.
    assert beat.flushed == 2


@pytest.mark.parametrize(
    ("worker", "beat"), [(Worker(GONE), Beat()), (Worker(), Beat(reaches=False))]
)
def test_without_a_master_nobody_says_that_it_was_the_last_attempt(worker, beat):
    assert worker.leaver.again(beat, UserCodeError("loss: bad"), "member")


def test_a_failure_is_of_the_present_phase():
    worker = Worker(pb.FailReply())
    assert not worker.leaver.fail(Beat(), "bug", "KeyError: 1", "trace")
    [(_, request)] = worker.master.requests
    assert (request.kind, request.phase, request.attempt) == ("bug", "member", 0)


@pytest.mark.parametrize("reply", [pb.FailReply(again=True), GONE])
def test_one_that_hangs_says_where_and_ends_as_a_failure(reply):
    worker = Worker(reply)
    with contextlib.suppress(rpc.Unreachable):
        worker.leaver.hang("it stands still", "in line 3")
    [(method, request)] = worker.master.requests
    assert method == "Fail"
    assert (request.kind, request.trace, request.attempt) == ("user_code", "in line 3", 1)
    assert request.message == "worker-1 hangs: it stands still"
    assert worker.happened == ["ended: it stands still, status 1"]
