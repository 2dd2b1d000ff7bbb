"""Stories of jobs, told in events; and what holds in whatever order events come."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from elasticdl.core import job
from elasticdl.core.job import (
    Dismiss,
    End,
    Failed,
    Form,
    HeartbeatCame,
    Job,
    JoinCalled,
    KillWorker,
    Lease,
    LeaseCalled,
    NotPublished,
    Publish,
    Published,
    ResultCame,
    Rules,
    Started,
    StartWorker,
    StopAsked,
    Ticked,
    WorkerGone,
)
from elasticdl.core.progress import Cursor, Progress


def training(workers=2, **rules):
    """A training whose workers have been started."""
    it = Job(Rules(workers=workers, expected=workers, streams=4, **rules))
    assert it.step(Started()) == [StartWorker(f"worker-{n}") for n in range(workers)]
    return it


def predicting(slices, workers=2):
    it = Job(Rules(workers=workers, expected=workers, slices=slices))
    it.step(Started())
    return it


def join(worker, generation=0, version=None):
    progress = None if version is None else Progress(version, (Cursor(),) * 4)
    return JoinCalled(worker, f"{worker}:1", generation, progress)


def formed(effects):
    """The one generation that was formed."""
    (form,) = effects
    assert isinstance(form, Form)
    return form.generation


def running(workers=2, **rules):
    """A training that is at work in its first generation."""
    it = training(workers, **rules)
    effects = [effect for n in range(workers) for effect in it.step(join(f"worker-{n}"))]
    assert formed(effects).number == 1
    return it


def done(it, phase):
    assert it.over
    assert it.phase == phase
    return True


# ---- generations --------------------------------------------------------------------------------


def test_the_first_generation_waits_for_all_workers():
    it = training(workers=3)
    assert it.step(join("worker-2")) == []
    assert it.step(join("worker-0")) == []
    generation = formed(it.step(join("worker-1")))
    assert generation.members == ("worker-0", "worker-1", "worker-2")
    assert it.phase == "running"
    assert it.reason == "3 workers at work."


def test_a_newcomer_joins_when_the_members_have_seen_the_flag():
    it = running()
    assert not it.regroup("worker-0")
    assert it.step(join("worker-7")) == []
    assert it.regroup("worker-0")
    assert it.regroup("worker-1")
    assert not it.regroup("worker-7")
    assert it.step(join("worker-0", 1, 5)) == []
    assert not it.regroup("worker-0")
    assert it.regroup("worker-1")
    generation = formed(it.step(join("worker-1", 1, 5)))
    assert generation.number == 2
    assert generation.members == ("worker-0", "worker-1", "worker-7")
    assert generation.versions == {"worker-0": 5, "worker-1": 5, "worker-7": -1}
    assert not it.regroup("worker-0")


def test_a_lost_member_is_replaced_and_the_others_go_on_without_it():
    it = running()
    assert it.step(join("worker-0", 1, 5)) == []
    effects = it.step(WorkerGone("worker-1", "killed by SIGKILL"))
    assert effects[0] == StartWorker("worker-2")
    assert formed(effects[1:]).members == ("worker-0",)
    assert it.step(join("worker-2")) == []
    assert it.regroup("worker-0")
    assert formed(it.step(join("worker-0", 2, 9))).members == ("worker-0", "worker-2")


def test_members_keep_their_streams_from_one_generation_to_the_next():
    it = running(workers=3)
    assert it.generation.streams == {"worker-0": (0, 1), "worker-1": (2,), "worker-2": (3,)}
    it.step(WorkerGone("worker-0", "killed by SIGKILL"))
    it.step(join("worker-1", 1, 5))
    (form,) = it.step(join("worker-2", 1, 5))
    assert form.generation.streams == {"worker-1": (0, 2), "worker-2": (1, 3)}


def test_a_worker_lost_before_the_first_generation_is_replaced_and_waited_for():
    it = training()
    it.step(join("worker-0"))
    assert it.step(WorkerGone("worker-1", "exit status 1")) == [StartWorker("worker-2")]
    assert it.reason == "worker-1 is lost (exit status 1); another one is being started."
    assert formed(it.step(join("worker-2"))).members == ("worker-0", "worker-2")


def test_a_member_that_was_not_told_of_its_generation_is_told_again():
    it = running()
    # Its connection broke, and the call was made again.
    assert it.step(join("worker-1")) == [Form(it.generation)]
    # Where another one has left that generation already, there is nothing to repeat.
    it.step(join("worker-0", 1, 0))
    assert formed(it.step(join("worker-1"))).number == 2


def test_a_worker_that_calls_again_is_one_candidate():
    it = training()
    it.step(join("worker-0"))
    assert it.step(join("worker-0")) == []
    assert formed(it.step(join("worker-1"))).members == ("worker-0", "worker-1")


# ---- losses -------------------------------------------------------------------------------------


def test_an_end_that_is_reported_twice_is_one_loss():
    it = running()
    assert it.step(WorkerGone("worker-1", "exit status 1")) == [StartWorker("worker-2")]
    assert it.step(WorkerGone("worker-1", "exit status 1")) == []
    assert it.step(WorkerGone("nobody", "exit status 1")) == []


def test_losses_without_a_step_in_between_end_the_job_with_the_last_words():
    it = training(workers=1, losses_in_a_row=2)
    it.step(WorkerGone("worker-0", "exit status 1"))
    it.step(WorkerGone("worker-1", "exit status 1"))
    assert it.step(WorkerGone("worker-2", "exit status 1", "ImportError: x")) == [End()]
    assert it.failure == job.Failure(
        "bug",
        "worker-2 ended (exit status 1), the 3rd loss without a step in between.",
        "ImportError: x",
    )


def test_losses_with_steps_in_between_never_end_the_job():
    it = training(workers=1, losses_in_a_row=1)
    for number in range(20):
        it.step(join(f"worker-{number}"))
        it.step(HeartbeatCame(f"worker-{number}", 0.0, number + 1))
        effects = it.step(WorkerGone(f"worker-{number}", "killed by SIGKILL"))
        assert effects == [StartWorker(f"worker-{number + 1}")]


def test_a_silent_worker_is_given_up_and_what_it_says_later_is_dismissed():
    it = running(grace_s=30.0)
    it.step(HeartbeatCame("worker-0", 100.0, 5))
    it.step(HeartbeatCame("worker-1", 85.0, 5))
    it.step(Ticked(100.0))
    it.step(join("worker-0", 1, 5))
    it.step(Ticked(115.0))
    kill, start, form = it.step(Ticked(116.0))
    assert kill == KillWorker("worker-1", "not heard from for more than grace_s = 30 s")
    assert start == StartWorker("worker-2")
    assert formed([form]).members == ("worker-0",)

    assert it.step(HeartbeatCame("worker-1", 117.0, 9)) == []
    assert it.version == 5
    assert "worker-1" not in it.alive
    assert it.step(join("worker-1", 1, 9)) == [Dismiss("worker-1")]
    assert it.step(ResultCame("worker-1", 2, "there")) == []
    assert it.step(Failed("bug", "my peers are gone", worker="worker-1")) == []
    assert it.step(WorkerGone("worker-1", "killed by SIGKILL")) == []
    assert it.phase == "running"


def test_a_worker_that_never_spoke_is_given_up_too():
    it = training(workers=1, grace_s=30.0)
    for now in (100.0, 110.0, 120.0, 130.0):
        assert it.step(Ticked(now)) == []
    assert it.step(Ticked(131.0)) == [
        KillWorker("worker-0", "not heard from for more than grace_s = 30 s"),
        StartWorker("worker-1"),
    ]


def test_several_silent_workers_are_lost_before_a_generation_is_formed():
    it = running(workers=3, grace_s=30.0)
    for worker in ("worker-0", "worker-1", "worker-2"):
        it.step(join(worker, 1, 5)) if worker != "worker-2" else None
    it.step(Ticked(100.0))
    it.step(HeartbeatCame("worker-0", 120.0, 5))
    it.step(Ticked(115.0))
    it.step(Ticked(130.0))
    effects = it.step(Ticked(131.0))
    assert [type(effect) for effect in effects] == [
        KillWorker,
        KillWorker,
        Dismiss,  # worker-1 waited: its call is answered
        StartWorker,
        StartWorker,
        Form,
    ]
    assert formed(effects[-1:]).members == ("worker-0",)


def test_time_in_which_the_master_slept_counts_against_nobody():
    it = running(grace_s=30.0)
    it.step(HeartbeatCame("worker-0", 100.0, 5))
    it.step(HeartbeatCame("worker-1", 100.0, 5))
    it.step(Ticked(100.0))
    assert it.step(Ticked(5000.0)) == []
    assert it.step(Ticked(5001.0)) == []


def test_workers_that_somebody_else_started_are_not_replaced():
    it = Job(Rules(workers=0, expected=1, streams=4))
    assert it.step(Started()) == []
    assert formed(it.step(join("worker-0"))).members == ("worker-0",)
    assert it.step(WorkerGone("worker-0", "exit status 1")) == [End()]
    assert it.failure == job.Failure("bug", "worker-0 ended (exit status 1).", "")


# ---- the end ------------------------------------------------------------------------------------


def test_a_result_is_published_and_then_the_job_has_succeeded():
    it = running()
    assert it.step(join("worker-1", 1, 9)) == []
    assert it.step(ResultCame("worker-0", 1, "work/result")) == [Publish("work/result")]
    assert not it.over
    assert it.step(Published()) == [Dismiss("worker-1"), End()]
    assert done(it, "succeeded")


def test_a_result_of_an_older_generation_is_refused():
    it = running()
    it.step(join("worker-0", 1, 9))
    it.step(join("worker-1", 1, 9))
    assert it.generation.number == 2
    assert it.step(ResultCame("worker-0", 1, "old")) == []
    assert it.step(ResultCame("stranger", 2, "false")) == []
    assert it.step(ResultCame("worker-0", 2, "new")) == [Publish("new")]


def test_a_result_that_comes_twice_is_published_once():
    it = running()
    it.step(ResultCame("worker-0", 1, "there"))
    assert it.step(ResultCame("worker-0", 1, "there")) == []


def test_while_a_result_is_published_nothing_else_happens():
    it = running()
    it.step(ResultCame("worker-0", 1, "there"))
    assert it.step(join("worker-0", 1, 9)) == []
    assert it.step(join("worker-1", 1, 9)) == []
    assert it.step(WorkerGone("worker-0", "exit status 0")) == [Dismiss("worker-0")]
    assert it.step(StopAsked("Ctrl-C")) == []
    assert it.step(Failed("bug", "too late")) == []
    assert it.step(Published()) == [Dismiss("worker-1"), End()]
    assert done(it, "succeeded")


def test_a_result_that_cannot_be_published_fails_the_job():
    it = running()
    it.step(ResultCame("worker-0", 1, "there"))
    it.step(join("worker-1", 1, 9))
    assert it.step(NotPublished("user", "output: no space left")) == [Dismiss("worker-1"), End()]
    assert done(it, "failed")
    assert it.failure == job.Failure("user", "output: no space left", "")


@pytest.mark.parametrize("kind", ["user", "user_code", "bug"])
def test_a_failure_ends_the_job_with_its_kind(kind):
    it = running()
    it.step(join("worker-1", 1, 5))
    failed = Failed(kind, "what and why", "their frames", "worker-0")
    assert it.step(failed) == [Dismiss("worker-1"), End()]
    assert done(it, "failed")
    assert it.failure == job.Failure(kind, "what and why", "their frames")


def test_the_first_failure_is_the_one_that_counts():
    it = running()
    it.step(Failed("user", "first"))
    assert it.step(Failed("bug", "second")) == []
    assert it.failure.message == it.reason == "first"


def test_a_job_is_stopped_on_request():
    it = training()
    it.step(join("worker-0"))
    assert it.step(StopAsked("Ctrl-C")) == [Dismiss("worker-0"), End()]
    assert done(it, "cancelled")
    assert it.reason == "Ctrl-C"
    assert it.failure is None


def test_after_the_end_calls_are_answered_and_nothing_is_started():
    it = running()
    it.step(StopAsked("Ctrl-C"))
    assert it.step(join("worker-0", 1, 5)) == [Dismiss("worker-0")]
    assert it.step(LeaseCalled("worker-0", (), 1)) == [Lease("worker-0", (), finished=True)]
    assert it.step(HeartbeatCame("worker-0", 1.0, 5)) == []
    assert it.step(WorkerGone("worker-0", "exit status 0")) == []
    assert it.alive == {"worker-1"}
    assert it.step(Ticked(10_000.0)) == []


# ---- prediction ---------------------------------------------------------------------------------


def test_a_prediction_ends_when_all_slices_are_done():
    it = predicting(slices=2)
    assert it.step(LeaseCalled("worker-0", (), 1)) == [Lease("worker-0", (0,), finished=False)]
    assert it.step(LeaseCalled("worker-1", (), 1)) == [Lease("worker-1", (1,), finished=False)]
    assert it.reason == "Slices are being predicted."
    assert it.step(LeaseCalled("worker-0", (0,), 1)) == [Lease("worker-0", (), finished=False)]
    assert it.step(LeaseCalled("worker-1", (1,), 1)) == [
        Lease("worker-1", (), finished=True),
        Publish(""),
    ]
    assert it.step(LeaseCalled("worker-0", (), 1)) == [Lease("worker-0", (), finished=True)]
    assert it.step(WorkerGone("worker-0", "exit status 0")) == []
    assert it.step(Published()) == [End()]
    assert done(it, "succeeded")
    assert it.version == 2


def test_slices_of_a_lost_worker_go_first_and_it_ends():
    it = predicting(slices=3)
    it.step(LeaseCalled("worker-0", (), 1))
    it.step(LeaseCalled("worker-1", (), 1))
    assert it.step(WorkerGone("worker-0", "killed by SIGKILL")) == [StartWorker("worker-2")]
    assert it.step(LeaseCalled("worker-1", (1,), 1)) == [Lease("worker-1", (0,), finished=False)]
    assert it.step(LeaseCalled("worker-0", (0,), 1)) == [Lease("worker-0", (), finished=True)]
    assert it.version == 1


def test_slices_that_were_done_before_are_not_leased():
    it = Job(Rules(workers=1, expected=1, slices=3, done=(0, 1)))
    it.step(Started())
    assert it.step(LeaseCalled("worker-0", (), 5)) == [Lease("worker-0", (2,), finished=False)]


# ---- any order of events ------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A job of three workers under everything that can happen, in any order."""

    def __init__(self):
        super().__init__()
        self.job = Job(Rules(workers=3, expected=3, streams=5, grace_s=30.0, losses_in_a_row=6))
        self.now = 0.0
        self.processes = set()  # that run
        self.forgotten = set()  # processes that the job has given up or seen the end of
        self.waiting = set()  # calls without an answer
        self.inside = {}  # worker → the generation it was last told of
        self.generations = []
        self.published = 0
        self.ended = 0
        self.step(Started())

    def step(self, event):
        over = self.job.over
        effects = self.job.step(event)
        for effect in effects:
            if over:
                assert isinstance(effect, Dismiss | Lease)
            self.do(effect, over)
        return effects

    def do(self, effect, over):
        match effect:
            case StartWorker(worker):
                assert worker not in self.processes | self.forgotten
                self.processes.add(worker)
            case KillWorker(worker):
                self.processes.discard(worker)
                self.forgotten.add(worker)
            case Form(generation):
                self.formed(generation)
            case Dismiss(worker):
                self.waiting.discard(worker)
            case Lease(worker, slices, finished):
                self.leased = (worker, slices, finished)
                assert finished or not over
            case Publish():
                self.published += 1
            case End():
                self.ended += 1

    def formed(self, generation):
        told = set(generation.members) & self.waiting
        if self.generations and generation is self.generations[-1]:
            assert told
        else:
            assert generation.number == len(self.generations) + 1
            assert set(generation.members) <= self.waiting
            assert set(generation.members) <= self.job.alive
            assert not set(generation.members) & self.forgotten
            hosted = sum((generation.streams[member] for member in generation.members), ())
            assert sorted(hosted) == list(range(5))
            # Whoever lives and was in the one before is in this one as well.
            if self.generations:
                assert set(self.generations[-1].members) - self.forgotten <= set(generation.members)
            self.generations.append(generation)
        for worker in told:
            self.inside[worker] = generation.number
        self.waiting -= told

    def some(self, data, workers):
        return data.draw(st.sampled_from(sorted(workers)))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), version=st.none() | st.integers(0, 9))
    def join(self, data, version):
        worker = self.some(data, self.processes | self.forgotten)
        self.waiting.add(worker)
        self.step(join(worker, self.inside.get(worker, 0), version))

    @precondition(lambda self: self.processes)
    @rule(version=st.none() | st.integers(0, 9))
    def all_join(self, version):
        for worker in sorted(self.processes - self.waiting):
            self.waiting.add(worker)
            self.step(join(worker, self.inside.get(worker, 0), version))

    @rule(version=st.integers(0, 9))
    def all_are_heard(self, version):
        for worker in sorted(self.processes):
            self.step(HeartbeatCame(worker, self.now, version))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def join_again_because_the_answer_was_lost(self, data):
        worker = self.some(data, self.inside)
        self.waiting.add(worker)
        self.step(join(worker, self.inside[worker] - 1, 3))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), version=st.integers(0, 9))
    def heartbeat(self, data, version):
        worker = self.some(data, self.processes | self.forgotten)
        self.step(HeartbeatCame(worker, self.now, version))

    @rule(seconds=st.integers(1, 12))
    def tick(self, seconds):
        self.now += seconds
        self.step(Ticked(self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def gone(self, data):
        worker = self.some(data, self.processes)
        self.processes.discard(worker)
        self.forgotten.add(worker)
        self.waiting.discard(worker)
        self.step(WorkerGone(worker, "killed by SIGKILL"))

    @precondition(lambda self: self.forgotten)
    @rule(data=st.data())
    def gone_again(self, data):
        self.step(WorkerGone(self.some(data, self.forgotten), "exit status 1"))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def result(self, data):
        worker = self.some(data, self.inside)
        number = self.inside[worker]
        current = self.job.generation.number == number and worker not in self.forgotten
        first = self.job.phase == "running"
        effects = self.step(ResultCame(worker, number, "there"))
        assert effects == ([Publish("there")] if current and first else [])

    @precondition(lambda self: self.published and not self.job.over)
    @rule(well=st.booleans())
    def published_(self, well):
        self.step(Published() if well else NotPublished("user", "disk full"))
        assert self.job.over

    @rule()
    @precondition(lambda self: len(self.generations) > 3)
    def stop(self):
        self.step(StopAsked("Ctrl-C"))

    @precondition(lambda self: len(self.generations) > 3 and self.processes)
    @rule(data=st.data())
    def fail(self, data):
        self.step(Failed("user_code", "no", worker=self.some(data, self.processes)))

    @invariant()
    def every_call_is_answered_or_has_a_reason_to_wait(self):
        if self.job.over:
            assert not self.waiting
        assert not self.waiting & self.forgotten
        if self.waiting and self.job.phase == "running":
            # Somebody is still in the generation, or it would have been formed anew.
            assert set(self.job.members) - self.waiting

    @invariant()
    def there_is_one_end_and_one_publication(self):
        assert self.ended == self.job.over
        assert self.published <= 1
        assert (self.job.failure is not None) == (self.job.phase == "failed")
        if self.job.phase == "succeeded":
            assert self.published == 1

    @invariant()
    def as_many_workers_as_wanted_until_the_end(self):
        if self.job.phase in ("starting", "running"):
            assert len(self.job.alive) >= 3
            assert self.processes <= self.job.alive
        assert not self.job.alive & self.forgotten

    @invariant()
    def it_says_why(self):
        assert self.job.reason
        assert "\n" not in self.job.reason

    @invariant()
    def members_are_told_to_regroup_while_others_wait_for_them(self):
        if self.job.phase == "running" and self.waiting - set(self.job.members):
            for member in set(self.job.members) - self.waiting:
                assert self.job.regroup(member)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=50, stateful_step_count=40)


class AnyOrderOfLeases(RuleBasedStateMachine):
    """A prediction whose workers repeat calls, are lost, and wake again."""

    def __init__(self):
        super().__init__()
        self.job = Job(Rules(workers=2, expected=2, slices=6))
        self.job.step(Started())
        self.started = 2
        self.lost = set()
        self.held = {}  # worker → slices in its hands
        self.done = []
        self.published = 0

    def workers(self):
        return [f"worker-{number}" for number in range(self.started)]

    def call(self, worker, reported):
        over = self.job.over
        effects = self.job.step(LeaseCalled(worker, tuple(reported), 1))
        lease = effects[0]
        assert isinstance(lease, Lease)
        assert lease.worker == worker
        self.published += effects[1:] == [Publish("")]
        assert not effects[1:] or lease.finished
        if worker not in self.lost and not over:
            mine = self.held.get(worker, set())
            self.done += [number for number in reported if number in mine]
            mine = (mine - set(reported)) | set(lease.slices)
            others = set().union(*(s for w, s in self.held.items() if w != worker))
            assert not mine & (others | set(self.done))
            self.held[worker] = mine
        else:
            assert lease.finished
        return lease

    @rule(data=st.data())
    def works(self, data):
        worker = data.draw(st.sampled_from(self.workers()))
        self.call(worker, sorted(self.held.get(worker, ())))

    @rule(data=st.data())
    def asks_again_because_the_answer_was_lost(self, data):
        worker = data.draw(st.sampled_from(self.workers()))
        held = self.held.get(worker, set())
        lease = self.call(worker, ())
        if held and worker not in self.lost and not self.job.over:
            assert set(lease.slices) == held

    @rule(data=st.data(), number=st.integers(0, 6))
    def reports_what_it_does_not_have(self, data, number):
        worker = data.draw(st.sampled_from(self.workers()))
        if number not in self.held.get(worker, ()):
            self.call(worker, [number])

    @rule(data=st.data())
    def is_lost(self, data):
        worker = data.draw(st.sampled_from(self.workers()))
        effects = self.job.step(WorkerGone(worker, "killed by SIGKILL"))
        self.started += sum(isinstance(effect, StartWorker) for effect in effects)
        self.lost.add(worker)
        self.held.pop(worker, None)

    @invariant()
    def each_slice_is_done_once(self):
        assert len(self.done) == len(set(self.done)) == self.job.leases.done
        if not self.job.over:
            assert (self.job.phase == "publishing") == (set(self.done) == set(range(6)))
            assert self.published == (self.job.phase == "publishing")


TestAnyOrderOfLeases = AnyOrderOfLeases.TestCase
TestAnyOrderOfLeases.settings = settings(deadline=None, max_examples=60)


def test_events_and_effects_are_values():
    for kind in (*job.Event.__args__, *job.Effect.__args__):
        assert dataclasses.fields(kind) is not None
        assert kind.__dataclass_params__.frozen
