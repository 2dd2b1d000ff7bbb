"""What a worker reports reaches the master, each report once, and what the master says is heard."""

import asyncio
import queue
import threading

import pytest

from elasticdl.core import membership
from elasticdl.core.progress import Cursor, Progress
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import elasticdl_pb2_grpc, rpc
from elasticdl.worker import heartbeat

PATIENCE_S = 60
GRACE_S = 2.0  # so long may an answer take


class Master(elasticdl_pb2_grpc.MasterServicer):
    """Keeps what it hears, and says the orders that it is given."""

    def __init__(self, orders):
        self.heard = queue.Queue()
        self.orders = orders
        self.followers = []

    async def Heartbeat(self, request, context):
        self.heard.put(request)
        return pb.HeartbeatReply()

    async def Follow(self, request, context):
        follower = asyncio.Queue()
        self.followers.append(follower)
        yield self.orders
        while True:
            yield await follower.get()


class Serving:
    """A master that listens, in a thread of its own."""

    def __init__(self, orders=None):
        self.master = Master(orders or pb.Orders())
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

    def orders(self, **orders):
        self.master.orders = pb.Orders(**orders)
        for follower in self.master.followers:
            self._loop.call_soon_threadsafe(follower.put_nowait, self.master.orders)

    def hears(self, wanted):
        """The first request from now on that is as wanted, and all until then."""
        before = []
        while True:
            before.append(self.master.heard.get(timeout=PATIENCE_S))
            if wanted(before[-1]):
                return before

    def until(self, condition):
        """Hears this worker until something is so."""
        while not condition():
            self.hears(lambda request: True)

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._down.set)
            self._thread.join()


@pytest.fixture
def masters(tmp_path):
    """Starts masters; each new one takes over."""
    started = []

    def start(orders=None):
        started.append(Serving(orders))
        rpc.write_locator(str(tmp_path / "master"), started[-1].address, len(started))
        return started[-1]

    yield start
    for serving in started:
        serving.close()


@pytest.fixture
def serving(masters):
    return masters()


@pytest.fixture
def beats(tmp_path):
    """Makes hearts that beat for whatever master the locator names."""
    made = []

    def make(ends=lambda reason, late: None, **times):
        client = rpc.Client(str(tmp_path / "master"))
        beat = heartbeat.Heartbeat(client, "worker-1", ends, **{"grace_s": GRACE_S, **times})
        made.append((beat, client))
        return beat

    yield make
    for beat, client in made:
        beat.close()
        client.close()


@pytest.fixture
def beat(serving, beats):
    return beats()


class Ends:
    """Keeps how this worker was told to end."""

    def __init__(self):
        self.told = queue.Queue()

    def __call__(self, reason, late):
        self.told.put((reason, late))

    def next(self):
        return self.told.get(timeout=PATIENCE_S)


def report(version):
    return pb.StepReport(version=version, elements=1, steps=1)


def versions(heard):
    return [step.version for request in heard for step in request.steps]


def fails_to_send(beat):
    with pytest.raises(rpc.Unreachable):
        beat.flush()


# ---- reports ----------------------------------------------------------------------------------


def test_the_heart_beats_by_itself(serving, beat):
    first, second = (serving.hears(lambda request: True)[0] for _ in range(2))
    assert first.worker == second.worker == "worker-1"
    assert first.phase == "starting"
    assert first.rank == -1
    assert first.term == 1
    assert not first.HasField("progress")
    assert not first.HasField("checkpoint")


def test_where_a_worker_stands_is_said_each_time(serving, beat):
    beat.joined(3, 1, (2, 5))
    beat.stands(Progress(7, (Cursor(1, 2, 3), Cursor())))
    beat.paced(membership.Pace(1.5, 20, 4))
    beat.checkpointed(pb.CheckpointReport(version=6, problem="full"))
    beat.phase("member")
    for _ in range(2):
        request = serving.hears(lambda request: request.phase == "member")[-1]
        assert (request.generation, request.rank, list(request.streams)) == (3, 1, [2, 5])
        assert request.progress.version == 7
        assert [(c.epoch, c.slice, c.element) for c in request.progress.cursors] == [
            (1, 2, 3),
            (0, 0, 0),
        ]
        assert (request.pace.seconds, request.pace.elements, request.pace.steps) == (1.5, 20, 4)
        assert (request.checkpoint.version, request.checkpoint.problem) == (6, "full")


def test_what_was_measured_in_one_generation_is_not_said_in_the_next(serving, beat):
    beat.paced(membership.Pace(1.5, 20, 4))
    beat.joined(4, 0, (0,))
    request = serving.hears(lambda request: request.generation == 4)[-1]
    assert not request.HasField("pace")


def test_reports_arrive_once_and_in_order(serving, beat):
    for version in range(1, 51):
        beat.committed(report(version), 0.1, speaks=True)
        if version % 10 == 0:
            beat.evaluated(version, 5, {"loss": 0.5, "each": [1.0, 2.0]})
            beat.notice(f"notice {version}")
            beat.flush()
    beat.phase("done")
    heard = serving.hears(lambda request: request.phase == "done")
    assert versions(heard) == list(range(1, 51))
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
    heard = serving.hears(lambda request: request.phase == "quiet")
    assert not any(request.steps for request in heard)
    beat.committed(report(1501), 0.25, speaks=True)
    last = serving.hears(lambda request: request.steps)[-1]
    assert versions([last]) == list(range(502, 1502))
    assert last.learning_rate == 0.25


def test_reports_that_could_not_be_sent_are_the_next_masters(masters, beats):
    first = masters()
    beat = beats(orphan_s=0.2, grace_s=0.2)
    beat.phase("member")
    first.close()
    for version in (1, 2):
        beat.committed(report(version), 0.1, speaks=True)
        beat.evaluated(version, 5, {})
        beat.notice(f"notice {version}")
        fails_to_send(beat)
    beat.committed(report(3), 0.1, speaks=True)
    second = masters()
    heard = second.hears(lambda request: 3 in versions([request]))
    assert versions(heard) == [1, 2, 3]
    assert [each.version for request in heard for each in request.evaluations] == [1, 2]
    assert [text for request in heard for text in request.notices] == ["notice 1", "notice 2"]
    second.hears(lambda request: request.term == 2)


# ---- orders -----------------------------------------------------------------------------------


def test_orders_are_heard_as_they_come(serving, beat):
    assert not beat.regroup
    serving.orders(regroup=True, given_up=2)
    serving.until(lambda: beat.regroup)
    assert beat.given_up(2)
    assert not beat.given_up(3)
    serving.orders(given_up=2)
    serving.until(lambda: not beat.regroup)
    assert not beat.stop
    serving.orders(stop=True)
    serving.until(lambda: beat.stop)
    assert beat.given_up(3)  # whatever it waits for


def test_orders_come_from_the_master_that_has_taken_over(masters, beats):
    first = masters(pb.Orders(regroup=True, given_up=5))
    beat = beats()
    first.until(lambda: beat.regroup)
    second = masters(pb.Orders(given_up=4))
    first.close()
    second.until(lambda: not beat.regroup)
    second.orders(given_up=6)
    second.until(lambda: beat.given_up(6))


def test_what_was_given_up_once_stays_given_up(masters, beats):
    """A new master does not know yet who is gone."""
    first = masters(pb.Orders(given_up=5))
    beat = beats()
    first.until(lambda: beat.given_up(5))
    second = masters(pb.Orders(regroup=True))
    first.close()
    second.until(lambda: beat.regroup)
    assert beat.given_up(5)


def test_a_worker_that_no_master_orders_goes_on(masters, beats):
    first = masters(pb.Orders(regroup=True))
    beat = beats(orphan_s=0.2, grace_s=0.2)
    beat.phase("member")
    first.until(lambda: beat.regroup)
    first.close()
    while beat.regroup:
        fails_to_send(beat)
    assert not beat.stop


# ---- without a master -------------------------------------------------------------------------


def test_a_worker_that_waits_in_vain_is_ended_once(masters, beats):
    ends = Ends()
    first = masters()
    beat = beats(ends, orphan_s=0.2, grace_s=0.2)
    first.hears(lambda request: True)
    first.close()
    assert ends.next() == ("no master was heard from for orphan_s = 0.2 s", False)
    assert beat.orphaned
    fails_to_send(beat)
    assert ends.told.empty()


@pytest.mark.parametrize("phase", ["member", "evaluating", "exporting", "predicting"])
def test_an_orphan_at_work_is_left_to_its_main_thread(beats, phase):
    ends = Ends()
    beat = beats(ends, orphan_s=0.1, grace_s=0.1)
    beat.phase(phase)
    while not beat.orphaned:
        fails_to_send(beat)
    fails_to_send(beat)
    assert ends.told.empty()
    beat.phase("warm")
    assert ends.next()[1] is False


def test_who_finds_a_master_again_is_no_orphan(masters, beats):
    beat = beats(orphan_s=0.1, grace_s=0.4)
    beat.phase("member")
    while not beat.orphaned:
        fails_to_send(beat)
    masters().until(lambda: not beat.orphaned)


def test_a_closed_heart_is_no_orphan(serving, beats):
    ends = Ends()
    beat = beats(ends, orphan_s=0.0)
    beat.close()
    serving.close()
    fails_to_send(beat)
    assert ends.told.empty()


# ---- leaving ----------------------------------------------------------------------------------


def test_an_idle_worker_leaves_at_once(serving, beats):
    ends = Ends()
    beat = beats(ends)
    beat.leave("told to end")
    assert beat.leaving == "told to end"
    assert ends.next() == ("told to end", False)


def test_a_worker_at_work_leaves_when_it_is_done(serving, beats):
    ends = Ends()
    beat = beats(ends)
    beat.phase("member")
    beat.leave("told to end")
    for _ in range(3):
        serving.hears(lambda request: request.phase == "member")
    assert ends.told.empty()
    beat.phase("warm")
    assert ends.next() == ("told to end", False)


def test_a_worker_that_does_not_come_to_an_end_of_its_work_is_ended_late(serving, beats):
    ends = Ends()
    beat = beats(ends, leave_s=0.0)
    beat.phase("member")
    beat.leave("told to end")
    assert ends.next() == ("told to end", True)


def test_one_that_got_back_to_work_while_it_was_to_end_is_ended_late(serving, beats):
    """The end waits for the main thread, and that for something that never comes."""
    ends = Ends()
    beat = beats(ends, leave_s=0.0)
    beat.leave("told to end")
    assert ends.next() == ("told to end", False)
    beat.phase("member")
    assert ends.next() == ("told to end", True)


def test_to_be_told_again_changes_nothing(serving, beat):
    beat.phase("member")
    beat.leave("told to end")
    beat.leave("told again")
    assert beat.leaving == "told to end"


def test_the_heart_beats_while_a_worker_ends(serving, beats):
    """What is silent is killed, in the midst of its last checkpoint."""
    begun, over = threading.Event(), threading.Event()

    def end(reason, late):
        begun.set()
        assert over.wait(PATIENCE_S)

    beats(end).leave("told to end")
    assert begun.wait(PATIENCE_S)
    serving.master.heard.queue.clear()
    for _ in range(3):
        serving.hears(lambda request: True)
    over.set()


# ---- hanging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["member", "evaluating", "predicting"])
def test_a_worker_whose_work_stands_still_is_told_of_once_with_its_stack(serving, beats, phase):
    told = queue.Queue()
    beat = beats(hangs=lambda *about: told.put(about), hang_s=0.1)
    beat.phase(phase)
    reason, trace = told.get(timeout=PATIENCE_S)
    assert reason == "its work has stood still for more than hang_s = 0.1 s"
    assert "told.get(timeout=PATIENCE_S)" in trace
    for _ in range(3):
        serving.hears(lambda request: True)
    assert told.empty()


def test_a_worker_that_works_waits_or_is_idle_does_not_hang(serving, beats):
    told = queue.Queue()
    beat = beats(hangs=lambda *about: told.put(about), hang_s=60.0)
    now = beat._alive
    for sign in (
        beat.alive,
        lambda: beat.given_up(1),
        beat.interrupts_evaluation,
        lambda: beat.stands(Progress(1, (Cursor(),))),
        lambda: beat.phase("member"),
    ):
        sign()
        now, before = beat._alive, now
        assert now > before
    for phase in ("starting", "warm", "exporting"):
        beat.phase(phase)
        beat._alive = now - 1000
        for _ in range(2):
            serving.hears(lambda request, phase=phase: request.phase == phase)
    assert told.empty()


def test_a_process_that_stood_still_as_a_whole_does_not_hang(serving, beats):
    told = queue.Queue()
    beat = beats(hangs=lambda *about: told.put(about), hang_s=60.0)
    beat._looked = beat._alive = beat._alive - 1000
    beat.phase("member")
    beat._alive = beat._looked
    for _ in range(3):
        serving.hears(lambda request: request.phase == "member")
    assert told.empty()
