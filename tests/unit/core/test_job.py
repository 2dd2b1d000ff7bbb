"""Stories of jobs, told in events; and what holds in whatever order events come."""

import dataclasses
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from elasticdl.core import job
from elasticdl.core.failures import Failure
from elasticdl.core.job import (
    ConnectionBroke,
    ConnectionMade,
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
    LeaveCalled,
    Note,
    NotPublished,
    Orders,
    Publish,
    Published,
    ResultCame,
    Rules,
    Save,
    ScaleAsked,
    Started,
    StartWorker,
    StopAsked,
    StopWorker,
    Ticked,
    WorkerGone,
    WorkerPends,
    WorkerTaken,
)
from elasticdl.core.membership import Pace
from elasticdl.core.progress import Cursor, Progress


def training(workers=2, **rules):
    """A training whose workers have been started."""
    it = Job(Rules(workers=workers, **{"streams": 4, **rules}))
    assert it.step(Started()) == [StartWorker(f"worker-{n}") for n in range(workers)]
    return it


def predicting(slices, workers=2, **rules):
    it = Job(Rules(workers=workers, slices=slices, **rules))
    it.step(Started())
    return it


def taken_over(*observed, workers=2, **rules):
    """A training whose new master finds these workers."""
    it = Job(Rules(workers=workers, term=2, **{"streams": 4, **rules}))
    it.effects = it.step(Started(observed, next_number=len(observed)))
    return it


def join(worker, generation=0, version=None):
    progress = None if version is None else Progress(version, (Cursor(),) * 4)
    return JoinCalled(worker, f"{worker}:1", generation, progress)


def beat(worker, now=0.0, version=-1, phase="member", **more):
    return HeartbeatCame(worker, now, version, phase, **more)


def at_work(worker, version, generation, rank=0, streams=()):
    return beat(worker, 0.0, version, generation=generation, rank=rank, streams=streams)


def killed(worker):
    return WorkerGone(worker, "killed by SIGKILL")


def crashed(worker, trace="frames"):
    return WorkerGone(worker, "exit status 1", crashed=True, trace=trace)


def formed(effects):
    """The one generation that was formed."""
    (form,) = [effect for effect in effects if isinstance(effect, Form)]
    return form.generation


def told(effects):
    return [effect.text for effect in effects if isinstance(effect, Note)]


def done(effects):
    """What is to be done, without what is only said."""
    return [effect for effect in effects if not isinstance(effect, Note)]


def running(workers=2, **rules):
    """A training that is at work in its first generation."""
    it = training(workers, **rules)
    effects = [effect for n in range(workers) for effect in it.step(join(f"worker-{n}"))]
    assert formed(effects).number == 1
    return it


def all_join(it, version):
    """The members regroup at this version; what followed from that."""
    number = it.generation.number
    return [e for worker in it.members for e in it.step(join(worker, number, version))]


def ended(it, phase):
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
    assert generation.restore
    assert it.phase == "running"
    assert it.reason == "3 workers at work."


def test_a_newcomer_joins_when_the_members_have_seen_the_flag():
    it = running()
    it.step(ScaleAsked(3))
    assert not it.orders("worker-0").regroup
    assert it.step(join("worker-2")) == []
    assert it.orders("worker-0").regroup
    assert it.orders("worker-1").regroup
    assert not it.orders("worker-2").regroup
    assert it.step(join("worker-0", 1, 5)) == []
    assert not it.orders("worker-0").regroup
    assert it.orders("worker-1").regroup
    generation = formed(it.step(join("worker-1", 1, 5)))
    assert generation.number == 2
    assert generation.members == ("worker-0", "worker-1", "worker-2")
    assert generation.versions == {"worker-0": 5, "worker-1": 5, "worker-2": -1}
    assert it.orders("worker-0") == Orders(given_up=1)


def test_a_lost_member_is_replaced_and_the_others_go_on_without_it():
    it = running()
    assert it.step(join("worker-0", 1, 5)) == []
    effects = it.step(killed("worker-1"))
    assert it.orders("worker-1") == Orders(stop=True)
    assert effects[:2] == [
        Note("worker-1 is lost (killed by SIGKILL); that is no failure."),
        StartWorker("worker-2"),
    ]
    assert formed(effects).members == ("worker-0",)
    assert it.step(join("worker-2")) == []
    assert it.orders("worker-0").regroup
    assert formed(it.step(join("worker-0", 2, 9))).members == ("worker-0", "worker-2")


def test_members_are_told_to_wait_no_longer_for_one_that_is_lost():
    it = running()
    it.step(killed("worker-1"))
    assert it.orders("worker-0") == Orders(given_up=1)


def test_members_keep_their_streams_from_one_generation_to_the_next():
    it = running(workers=3)
    assert it.generation.streams == {"worker-0": (0, 1), "worker-1": (2,), "worker-2": (3,)}
    it.step(killed("worker-0"))
    it.step(join("worker-1", 1, 5))
    generation = formed(it.step(join("worker-2", 1, 5)))
    assert generation.streams == {"worker-1": (0, 2), "worker-2": (1, 3)}


def test_the_first_generation_does_not_wait_for_who_takes_the_place_of_a_lost_worker():
    it = training()
    it.step(join("worker-0"))
    effects = it.step(killed("worker-1"))
    assert StartWorker("worker-2") in effects
    assert formed(effects).members == ("worker-0",)
    it.step(join("worker-2"))
    assert it.orders("worker-0").regroup


def test_the_first_generation_does_not_wait_for_a_worker_that_has_no_machine():
    it = training(workers=3)
    it.step(join("worker-0"))
    it.step(join("worker-1"))
    effects = it.step(WorkerPends("worker-2", "no machine has 2 CPUs to spare"))
    assert formed(effects).members == ("worker-0", "worker-1")
    assert it.phase_of("worker-2") == "pending"
    # It is the elasticity: once it has a machine, it joins.
    assert it.step(WorkerPends("worker-2", "")) == []
    assert it.phase_of("worker-2") == "starting"
    it.step(join("worker-2"))
    assert it.orders("worker-0").regroup


def test_why_workers_are_pending_is_said_once():
    it = training(workers=3)
    assert told(it.step(WorkerPends("worker-1", "too large"))) == [
        "worker-1 is pending: too large."
    ]
    assert it.reason == "worker-1 is pending: too large."
    assert told(it.step(WorkerPends("worker-1", "too large"))) == []
    assert told(it.step(WorkerPends("worker-2", "too large"))) == [
        "worker-2 and 1 more are pending: too large."
    ]
    it.step(killed("worker-1"))
    assert told(it.step(WorkerPends("worker-2", "no image"))) == ["worker-2 is pending: no image."]


def test_min_workers_are_waited_for_even_if_they_have_no_machine():
    it = training(workers=3, min_workers=2)
    it.step(WorkerPends("worker-1", "too large"))
    it.step(WorkerPends("worker-2", "too large"))
    assert it.step(join("worker-0")) == []
    it.step(WorkerPends("worker-1", ""))
    assert formed(it.step(join("worker-1"))).members == ("worker-0", "worker-1")


def test_a_new_master_does_not_wait_to_hear_of_a_worker_that_has_no_machine():
    it = taken_over("worker-0", "worker-1")
    it.step(at_work("worker-0", 5, 1))
    it.step(WorkerPends("worker-1", "too large"))
    assert it.current("worker-0", 1)


def test_why_the_cluster_takes_a_worker_away_is_said():
    it = running()
    taken = WorkerTaken("worker-1", "its pod was preempted")
    assert told(it.step(taken)) == ["worker-1 is taken away (its pod was preempted)."]
    assert it.members == ("worker-0", "worker-1")


def test_a_crash_that_the_user_can_help_is_told_as_such():
    it = training(workers=1, max_failures=1)
    it.step(WorkerGone("worker-0", "out of memory", crashed=True, kind="user"))
    assert it.failure == Failure("user", "worker-0 ended (out of memory)", "", "worker-0")


def test_a_member_that_was_not_told_of_its_generation_is_told_again():
    it = running()
    # Its connection broke, and the call was made again.
    assert it.step(join("worker-1")) == [Form(it.generation)]
    # Where another one has left that generation already, there is nothing to repeat.
    it.step(join("worker-0", 1, 0))
    assert formed(it.step(join("worker-1"))).number == 2


def test_a_member_whose_replica_is_not_the_one_that_was_counted_on_is_not_told_again():
    it = running()
    all_join(it, 5)
    assert it.generation.versions["worker-1"] == 5
    # To begin at 6 beside one that begins at 5 would be two histories.
    assert it.step(join("worker-1", 1, 6)) == []
    assert it.orders("worker-0").given_up == 2
    generation = formed(it.step(join("worker-0", 2, 5)))
    assert generation.members[generation.source] == "worker-1"
    assert generation.behind == (0,)


def test_a_call_that_comes_late_does_not_take_the_place_of_a_newer_one():
    it = running()
    all_join(it, 5)
    it.step(join("worker-1", 2, 7))
    assert it.step(join("worker-1", 1, 5)) == []
    assert formed(it.step(join("worker-0", 2, 7))).versions == {"worker-0": 7, "worker-1": 7}


def test_a_worker_that_calls_again_is_one_candidate():
    it = training()
    it.step(join("worker-0"))
    assert it.step(join("worker-0")) == []
    assert formed(it.step(join("worker-1"))).members == ("worker-0", "worker-1")


def test_a_generation_that_a_member_has_left_is_given_up_when_the_others_do_not_see_it():
    it = running()
    it.step(Ticked(10.0))
    it.step(join("worker-0", 1, 5))
    it.step(Ticked(10.2))
    assert it.orders("worker-1").given_up == 0
    it.step(Ticked(10.3))
    assert it.orders("worker-1").given_up == 1
    assert formed(it.step(join("worker-1", 1, 4))).versions == {"worker-0": 5, "worker-1": 4}


def test_that_is_seen_of_a_member_too_that_called_before_the_first_tick():
    it = running()
    it.step(join("worker-0", 1, 5))
    it.step(Ticked(10.0))
    it.step(Ticked(10.2))
    it.step(Ticked(10.4))
    assert it.orders("worker-1").given_up == 1


def broken(worker, **rules):
    """A training in which this worker's connection broke at 10.0; worker-0 waits for the next
    generation."""
    it = running(3, **rules)
    it.step(Ticked(10.0))
    for member in it.members:
        it.step(beat(member, 10.0, 5, generation=1))
    it.step(ConnectionBroke(worker, 10.0))
    it.step(join("worker-0", 1, 5))
    return it


def test_a_member_whose_connections_to_all_broke_is_lost_before_its_grace_is_over():
    it = broken("worker-1")
    assert it.step(Ticked(10.15)) == []
    effects = it.step(Ticked(10.25))
    (kill,) = [effect for effect in effects if isinstance(effect, KillWorker)]
    assert kill.worker == "worker-1"
    assert told(effects)[0].startswith("worker-1 is lost (its connections broke")
    assert formed(it.step(join("worker-2", 1, 5))).members == ("worker-0", "worker-2")


@pytest.mark.parametrize(
    "sign", [ConnectionMade("worker-1"), beat("worker-1", 10.1, 5), join("worker-1", 1, 5)]
)
def test_but_not_one_that_shows_that_it_lives(sign):
    it = broken("worker-1")
    it.step(sign)
    assert done(it.step(Ticked(10.25))) == []
    assert "worker-1" in it.alive


def test_nor_where_the_others_see_nothing_wrong_with_it():
    it = running(2)
    it.step(Ticked(10.0))
    it.step(beat("worker-1", 10.0, 5, generation=1))
    it.step(ConnectionBroke("worker-1", 10.0))
    it.step(Ticked(10.25))
    assert "worker-1" in it.alive


def test_nor_where_nobody_is_ever_given_up():
    it = broken("worker-1", grace_s=math.inf)
    it.step(Ticked(10.25))
    assert "worker-1" in it.alive


# ---- losses cost nothing, crashes do ------------------------------------------------------------


def test_an_end_that_is_reported_twice_is_one_loss():
    it = running()
    assert done(it.step(killed("worker-1"))) == [StartWorker("worker-2")]
    assert it.step(killed("worker-1")) == []
    assert it.step(killed("nobody")) == []


def test_what_a_worker_said_before_its_end_may_come_after_it():
    it = taken_over("worker-0")
    assert it.step(killed("worker-5")) == []
    assert it.step(at_work("worker-5", 40, 7)) == []
    assert it.step(join("worker-5", 7, 40)) == [Dismiss("worker-5")]
    assert "worker-5" not in it.alive


def test_any_number_of_workers_may_be_lost():
    it = training(workers=1, max_failures=1)
    for number in range(20):
        it.step(join(f"worker-{number}"))
        it.step(beat(f"worker-{number}", version=number + 1))
        assert done(it.step(killed(f"worker-{number}"))) == [StartWorker(f"worker-{number + 1}")]


def test_crashes_spend_the_budget_and_the_first_one_is_told():
    it = running(max_failures=2)
    effects = it.step(crashed("worker-1", "ImportError: x"))
    assert told(effects) == [
        "worker-1 is lost (exit status 1); that was failure 1, and max_failures = 2."
    ]
    assert done(effects) == [StartWorker("worker-2")]
    assert it.step(crashed("worker-0", "another")) == [End()]
    assert ended(it, "failed")
    assert it.failure == Failure(
        "bug",
        "worker-1 ended (exit status 1). That was failure 2, and max_failures = 2.",
        "ImportError: x",
        "worker-1",
    )


def no(worker, attempt=1, slices=(), kind="user_code", phase="member"):
    return Failed(kind, f"no {attempt}", f"frames {attempt}", worker, slices, phase, attempt)


def test_a_failure_of_user_code_is_tried_again_until_the_budget_is_spent():
    it = running(max_failures=2)
    effects = it.step(no("worker-1"))
    assert effects == [
        Note("worker-1 failed (no 1); that was failure 1, and max_failures = 2: the job goes on.")
    ]
    assert it.goes_on("worker-1")
    assert formed(all_join(it, 5)).number == 2
    assert it.step(no("worker-1", 2)) == [End()]
    assert not it.goes_on("worker-1")
    assert it.failure == Failure(
        "user_code",
        "no 1. That was failure 2, and max_failures = 2.",
        "frames 1",
        "worker-1",
    )


def test_a_failure_that_is_reported_twice_counts_once():
    it = running(max_failures=2)
    it.step(no("worker-1", 1))
    assert it.step(no("worker-1", 1)) == []
    assert not it.over


def test_a_worker_that_says_why_it_fails_and_then_ends_has_failed_once():
    it = running(max_failures=2)
    it.step(no("worker-1", kind="bug"))
    assert StartWorker("worker-2") in it.step(crashed("worker-1"))
    assert not it.over


def test_the_slice_at_which_several_workers_fail_is_named():
    it = running(workers=3)
    it.step(no("worker-1", 1, ("a.csv, records 0 to 9", "b")))
    assert told(it.step(no("worker-2", 2, ("c", "a.csv, records 0 to 9")))) == [
        "worker-2 failed (no 2); that was failure 2, and max_failures = 3: the job goes on. "
        "It was at a.csv, records 0 to 9 each time."
    ]
    it.step(no("worker-0", 3, ("a.csv, records 0 to 9",)))
    assert it.failure.message == (
        "no 1. That was failure 3, and max_failures = 3. It was at a.csv, records 0 to 9 each time."
    )


@pytest.mark.parametrize(
    "failed", [no("worker-1", kind="user"), no("worker-1", phase="starting"), Failed("bug", "no 1")]
)
def test_what_would_fail_again_ends_the_job_at_once(failed):
    it = running()
    it.step(join("worker-0", 1, 5))
    assert it.step(failed) == [Dismiss("worker-0"), End()]
    assert ended(it, "failed")
    assert it.failure.message == "no 1"


def test_workers_that_die_early_are_started_again_later_and_later():
    it = running()
    it.step(killed("worker-1"))
    starts = []
    for number in range(2, 9):
        # Others that are at work do not make it any better.
        it.step(beat("worker-0", version=number, generation=1))
        starts += done(it.step(killed(f"worker-{number}")))
    assert [start.delay_s for start in starts] == [0, 1, 2, 4, 8, 16, 30]
    it.step(beat("worker-9", phase="warm"))
    assert done(it.step(killed("worker-9"))) == [StartWorker("worker-10")]


def test_a_worker_that_calls_has_not_died_early():
    it = running(start_grace_s=3.0)
    for number in (1, 2, 3):
        effects = it.step(killed(f"worker-{number}"))
    assert done(effects) == [StartWorker("worker-4", 1.0)]
    it.step(Ticked(0.0))
    it.step(join("worker-4"))
    assert StartWorker("worker-5") in it.step(killed("worker-4"))


def test_a_worker_that_says_nothing_after_its_start_has_died_early_too():
    it = running(start_grace_s=3.0)
    it.step(killed("worker-1"))
    now = 0.0
    starts = []
    while len(starts) < 3:
        now += 0.5
        it.step(beat("worker-0", now, generation=1))
        starts += [e for e in it.step(Ticked(now)) if isinstance(e, StartWorker)]
    assert [start.delay_s for start in starts] == [0, 1, 2]


# ---- silence ------------------------------------------------------------------------------------


def test_a_silent_worker_is_given_up_and_what_it_says_later_is_dismissed():
    it = running(grace_s=30.0)
    it.step(beat("worker-0", 100.0, 5, generation=1))
    it.step(beat("worker-1", 85.0, 5, generation=1))
    it.step(Ticked(100.0))
    it.step(join("worker-0", 1, 5))
    it.step(Ticked(115.0))
    effects = it.step(Ticked(116.0))
    assert done(effects)[:2] == [
        KillWorker("worker-1", "not heard from for more than grace_s = 30 s"),
        StartWorker("worker-2"),
    ]
    assert formed(effects).members == ("worker-0",)
    assert told(effects) == [
        "worker-1 is lost (not heard from for more than grace_s = 30 s); that is no failure."
    ]

    assert it.step(beat("worker-1", 117.0, 9, generation=1)) == []
    assert it.version == 5
    assert "worker-1" not in it.alive
    assert it.step(join("worker-1", 1, 9)) == [Dismiss("worker-1")]
    assert it.step(ResultCame("worker-1", 1, "there")) == []
    assert it.step(ResultCame("worker-1", 2, "there")) == []
    assert it.step(Failed("bug", "my peers are gone", worker="worker-1")) == []
    assert it.step(LeaveCalled("worker-1", "SIGTERM")) == []
    assert it.step(killed("worker-1")) == []
    assert it.phase == "running"


def until(it, now, seconds, *others):
    """Half a second after another goes by, in which only these are heard."""
    effects = []
    for _ in range(int(seconds * 2)):
        now += 0.5
        for worker in others:
            it.step(beat(worker, now, generation=1))
        effects += it.step(Ticked(now))
    return now, effects


def test_a_worker_that_cannot_start_yet_is_not_silent():
    it = training(workers=1)
    it.step(Ticked(100.0))
    it.step(WorkerPends("worker-0", "too large"))
    now, effects = until(it, 100.0, 600.0)
    it.step(WorkerPends("worker-0", ""))
    now, more = until(it, now, 60.0)
    assert effects + more == []
    _, effects = until(it, now, 0.5)
    assert done(effects)[0] == KillWorker("worker-0", "not heard from for more than 60 s")


def test_a_worker_that_starts_has_more_time():
    it = training(workers=1)
    it.step(Ticked(100.0))
    now, effects = until(it, 100.0, 60.0)
    assert effects == []
    _, effects = until(it, now, 0.5)
    assert done(effects) == [
        KillWorker("worker-0", "not heard from for more than 60 s"),
        StartWorker("worker-1"),
    ]


@pytest.mark.parametrize("grace_s", [1.0, 60.0, 90.0])
def test_no_worker_has_more_time_than_its_phase_is_given(grace_s):
    it = running(grace_s=grace_s)
    it.step(beat("worker-1", 100.0, 5, generation=1))
    it.step(Ticked(100.0))
    now, effects = until(it, 100.0, grace_s, "worker-0")
    assert effects == []
    _, effects = until(it, now, 0.5, "worker-0")
    assert [e.worker for e in effects if isinstance(e, KillWorker)] == ["worker-1"]


def test_several_silent_workers_are_lost_before_a_generation_is_formed():
    it = running(workers=3, grace_s=30.0)
    for worker in ("worker-0", "worker-1", "worker-2"):
        it.step(beat(worker, 100.0, 5, generation=1))
    for worker in ("worker-0", "worker-1"):
        it.step(join(worker, 1, 5))
    it.step(Ticked(100.0))
    it.step(beat("worker-0", 120.0, 5, generation=1))
    it.step(Ticked(115.0))
    it.step(Ticked(130.0))
    effects = it.step(Ticked(131.0))
    assert [type(effect) for effect in done(effects)] == [
        KillWorker,
        KillWorker,
        Dismiss,  # worker-1 waited: its call is answered
        StartWorker,
        StartWorker,
        Form,
    ]
    assert told(effects)[0].startswith("worker-1 and worker-2 are lost (")
    assert formed(effects).members == ("worker-0",)


def test_time_in_which_the_master_slept_counts_against_nobody():
    it = running(grace_s=30.0)
    it.step(beat("worker-0", 100.0, 5))
    it.step(beat("worker-1", 100.0, 5))
    it.step(Ticked(100.0))
    assert it.step(Ticked(5000.0)) == []
    assert it.step(Ticked(5001.0)) == []


def test_a_master_that_is_always_late_gives_silent_workers_up_all_the_same():
    it = running()
    it.step(beat("worker-1", 100.0, 5, generation=1))
    it.step(Ticked(100.0))
    lost = []
    for now in range(101, 110):
        it.step(beat("worker-0", float(now), 5, generation=1))
        lost += [e.worker for e in it.step(Ticked(float(now))) if isinstance(e, KillWorker)]
    assert lost == ["worker-1"]


def test_workers_that_somebody_else_started_are_not_replaced():
    it = Job(Rules(workers=1, starts=False, streams=4))
    assert it.step(Started()) == []
    assert formed(it.step(join("worker-0"))).members == ("worker-0",)
    assert it.scale_problem(2) == "this job's workers are started by somebody else"
    assert it.step(crashed("worker-0")) == [End()]
    assert it.failure == Failure("bug", "worker-0 ended (exit status 1)", "frames", "worker-0")


# ---- standbys, min_workers, scale ---------------------------------------------------------------


def with_standby(workers=2, **rules):
    """A training at work with a warm standby, the last worker."""
    it = running(workers, standby=1, **rules)
    assert f"worker-{workers}" in it.alive
    it.step(beat(f"worker-{workers}", phase="warm"))
    assert it.step(join(f"worker-{workers}")) == []
    return it


def test_a_standby_is_started_with_the_first_generation_and_waits():
    it = with_standby()
    assert it.phase_of("worker-2") == "standby"
    assert it.orders("worker-0") == Orders()
    assert done(it.step(killed("worker-2"))) == [Dismiss("worker-2"), StartWorker("worker-3")]


def test_the_first_standby_may_be_started_later():
    it = running(standby=1, standby_after_s=5.0)
    assert it.step(Ticked(100.0)) == [StartWorker("worker-2")]  # at work for an unknown time
    it = training(standby=1, standby_after_s=5.0)
    it.step(Ticked(100.0))
    assert done(it.step(join("worker-0")) + it.step(join("worker-1")))[1:] == []
    for worker in ("worker-0", "worker-1"):
        it.step(beat(worker, 200.0, generation=1))
    assert it.step(Ticked(104.9)) == []
    assert it.step(Ticked(105.0)) == [StartWorker("worker-2")]


def test_a_standby_takes_a_lost_member_s_place_at_once_and_is_replaced():
    it = with_standby()
    assert it.step(join("worker-0", 1, 5)) == []
    effects = it.step(killed("worker-1"))
    assert done(effects)[0] == StartWorker("worker-3")
    assert formed(effects).members == ("worker-0", "worker-2")
    assert it.step(join("worker-3")) == []
    assert it.orders("worker-0") == Orders(given_up=1)


def test_below_min_workers_the_job_waits_and_says_so():
    it = running(workers=2, min_workers=2)
    it.step(join("worker-0", 1, 5))
    effects = it.step(killed("worker-1"))
    waits = "1 of min_workers = 2 workers is there; the job waits for more."
    assert effects[-1] == Note(waits)
    assert it.reason == waits
    assert it.step(beat("worker-0", phase="warm", version=5)) == []
    generation = formed(it.step(join("worker-2")))
    assert generation.members == ("worker-0", "worker-2")
    assert it.reason == "2 workers at work."


def test_scaling_up_starts_workers_that_join():
    it = running()
    assert it.step(ScaleAsked(3)) == [
        Note("num_workers goes from 2 to 3, as asked."),
        StartWorker("worker-2"),
    ]
    it.step(join("worker-2"))
    assert it.orders("worker-0").regroup
    assert len(formed(all_join(it, 5)).members) == 3


def test_scaling_up_takes_the_standby_first():
    it = with_standby()
    assert done(it.step(ScaleAsked(3))) == [StartWorker("worker-3")]
    assert formed(all_join(it, 5)).members == ("worker-0", "worker-1", "worker-2")


def test_scaling_down_regroups_and_dismisses_who_is_too_many():
    it = running(workers=3)
    assert done(it.step(ScaleAsked(2))) == []
    assert it.orders("worker-1").regroup
    effects = all_join(it, 5)
    assert formed(effects).members == ("worker-0", "worker-1")
    assert effects[1:] == [Dismiss("worker-2")]
    assert it.phase_of("worker-2") == "leaving"
    assert it.step(LeaveCalled("worker-2", "no longer needed")) == []
    assert it.step(WorkerGone("worker-2", "exit status 0")) == []
    assert it.alive == {"worker-0", "worker-1"}


def test_who_is_no_member_any_more_stands_by_where_standbys_are_wanted():
    it = with_standby(workers=3)
    # The younger standby goes; one that was a member has a replica nearly as new.
    assert done(it.step(ScaleAsked(2))) == [Dismiss("worker-3")]
    assert done(all_join(it, 5))[1:] == []
    assert it.phase_of("worker-2") == "starting"
    it.step(beat("worker-2", phase="warm", version=5))
    assert it.phase_of("worker-2") == "standby"
    it.step(join("worker-0", 2, 9))
    generation = formed(it.step(killed("worker-1")))
    assert generation.members == ("worker-0", "worker-2")
    assert generation.behind == (1,)


def test_surplus_that_is_still_starting_is_told_to_end():
    it = training(workers=3)
    assert done(it.step(ScaleAsked(2))) == [StopWorker("worker-2")]
    it.step(join("worker-0"))
    assert formed(it.step(join("worker-1"))).members == ("worker-0", "worker-1")
    assert it.step(join("worker-2")) == [Dismiss("worker-2")]


@pytest.mark.parametrize(
    ("workers", "problem"),
    [
        (1, "expected at least min_workers = 2; got 1"),
        (5, "expected at most one worker a stream, streams = 4; got 5"),
        (4, ""),
    ],
)
def test_not_every_number_of_workers_can_be(workers, problem):
    it = running(workers=3, min_workers=2)
    assert it.scale_problem(workers) == problem
    assert bool(it.step(ScaleAsked(workers))) == (not problem)
    it.step(StopAsked("Ctrl-C"))
    assert it.scale_problem(3) == "the job is ending"


# ---- leaving ------------------------------------------------------------------------------------


def test_a_member_leaves_at_a_step_and_the_others_regroup_without_it():
    it = running(workers=3)
    it.step(beat("worker-0", version=7, generation=1))
    it.step(join("worker-0", 1, 8))
    it.step(join("worker-2", 1, 8))
    effects = it.step(LeaveCalled("worker-1", "SIGTERM"))
    assert told(effects) == ["worker-1 leaves at step 7 (SIGTERM)."]
    assert formed(effects).members == ("worker-0", "worker-2")
    assert StartWorker("worker-3") in effects
    assert it.step(WorkerGone("worker-1", "exit status 0")) == []


def test_a_standby_that_leaves_is_answered():
    it = with_standby()
    assert done(it.step(LeaveCalled("worker-2", "SIGTERM"))) == [
        Dismiss("worker-2"),
        StartWorker("worker-3"),
    ]
    assert it.orders("worker-0") == Orders()


def test_with_its_last_member_the_last_replica_is_gone():
    it = running()
    assert not it.last_replica("worker-0")
    it.step(killed("worker-1"))
    assert it.last_replica("worker-0")
    assert not it.last_replica("worker-2")
    it.step(join("worker-2"))
    assert it.last_replica("worker-0")


# ---- another master takes over ------------------------------------------------------------------


def test_a_new_master_adopts_the_generation_that_it_finds_and_disturbs_nobody():
    it = taken_over("worker-3", "worker-5")
    assert it.effects == [Note("A new master takes over 2 workers.")]
    assert it.step(at_work("worker-5", 40, 7, 0, (0, 1))) == []
    assert it.step(at_work("worker-3", 40, 7, 1, (2, 3))) == []
    assert it.members == ("worker-5", "worker-3")
    assert it.phase == "running"
    assert it.reason == "2 workers at work."
    for worker in it.members:
        assert it.orders(worker).regroup is False
        assert it.orders(worker).given_up < 7
    it.step(join("worker-5", 7, 41))
    generation = formed(it.step(join("worker-3", 7, 41)))
    assert (generation.term, generation.number) == (2, 8)
    assert generation.streams == {"worker-5": (0, 1), "worker-3": (2, 3)}


def test_it_forms_nothing_until_each_worker_is_heard():
    it = taken_over("worker-0", "worker-1", "worker-2")
    assert it.step(join("worker-0", 7, 40)) == []
    assert it.step(join("worker-1", 7, 41)) == []
    generation = formed(it.step(join("worker-2", 7, 40)))
    assert generation.number == 8
    assert generation.members[generation.source] == "worker-1"


@pytest.mark.parametrize("end", ["gone", "silent"])
def test_or_is_gone_or_silent_for_three_graces(end):
    it = taken_over("worker-0", "worker-1", workers=1)
    it.step(Ticked(100.0))
    it.step(join("worker-0", 7, 40))
    if end == "gone":
        assert formed(it.step(killed("worker-1"))).number == 8
        return
    it.step(beat("worker-0", 200.0, 40, "warm", generation=7))
    now, effects = until(it, 100.0, 3.0)
    assert effects == []
    _, effects = until(it, now, 0.5)
    assert effects[0] == KillWorker("worker-1", "not heard from for more than 3 s")
    assert formed(effects).number == 8


def test_it_waits_for_replicas_that_are_between_two_generations():
    """Standbys call at once, but who has a replica is to be in the next generation."""
    it = taken_over("worker-0", "worker-1", "worker-2", "worker-3")
    it.step(beat("worker-0", 0.0, 40, "warm", generation=7))
    it.step(beat("worker-1", 0.0, 41, "warm", generation=7))
    assert it.step(join("worker-2")) == []
    assert it.step(join("worker-3")) == []
    assert it.step(join("worker-0", 7, 40)) == []
    generation = formed(it.step(join("worker-1", 7, 41)))
    assert generation.members == ("worker-0", "worker-1")
    assert not generation.restore


def test_who_was_at_work_does_not_wait_for_workers_that_only_now_start():
    it = taken_over("worker-0", workers=3)
    assert done(it.effects) == [StartWorker("worker-1"), StartWorker("worker-2")]
    assert formed(it.step(join("worker-0", 7, 40))).members == ("worker-0",)


def test_after_a_takeover_too_it_says_that_min_workers_are_not_there():
    it = taken_over("worker-0", workers=2, min_workers=2)
    assert told(it.step(join("worker-0", 7, 40))) == [
        "1 of min_workers = 2 workers is there; the job waits for more."
    ]
    assert formed(it.step(join("worker-1"))).members == ("worker-0", "worker-1")


def test_the_highest_generation_counts_and_who_is_in_an_older_one_is_called_back():
    it = taken_over("worker-0", "worker-1", "worker-2", workers=3)
    it.step(at_work("worker-2", 39, 6))
    assert it.members == ("worker-2",)
    it.step(at_work("worker-0", 40, 7, 0, (0, 1)))
    it.step(at_work("worker-1", 40, 7, 1, (2, 3)))
    assert it.members == ("worker-0", "worker-1")
    assert it.orders("worker-2").given_up == 6
    assert it.orders("worker-0").given_up == 6
    it.step(join("worker-2", 6, 39))
    assert it.orders("worker-0").regroup


def test_no_result_counts_until_all_workers_are_heard():
    it = taken_over("worker-0", "worker-1")
    it.step(beat("worker-0", 0.0, 90, "exporting", generation=7))
    # The others may have been in a newer generation.
    assert not it.current("worker-0", 7)
    assert it.step(ResultCame("worker-0", 7, "there")) == []
    it.step(join("worker-1", 7, 90))
    assert it.step(ResultCame("worker-0", 7, "there")) == [Publish("there")]


@pytest.mark.parametrize(
    "newer",
    [
        beat("worker-1", 0.0, 90, "warm", generation=8),
        join("worker-1", 8, 90),
        at_work("worker-1", 90, 8),
    ],
)
@pytest.mark.parametrize("first", ["older", "newer"])
def test_nor_does_one_of_a_generation_after_which_there_was_another(newer, first):
    it = taken_over("worker-0", "worker-1")
    older = beat("worker-0", 0.0, 90, "exporting", generation=7)
    for event in [older, newer] if first == "older" else [newer, older]:
        it.step(event)
    assert it.step(ResultCame("worker-0", 7, "there")) == []
    assert it.orders("worker-0").given_up >= 7
    it.step(join("worker-1", 8, 90))
    assert formed(it.step(join("worker-0", 7, 90))).number == 9


def test_it_waits_for_members_that_have_met_but_are_not_at_work_yet():
    it = taken_over("worker-1", workers=2)
    it.step(beat("worker-1", 0.0, -1, "warm", generation=1))
    # By now it may have received the replica that its generation began with.
    assert it.step(join("worker-2")) == []
    assert it.orders("worker-1").given_up == 1
    generation = formed(it.step(join("worker-1", 1, 0)))
    assert generation.members == ("worker-1", "worker-2")
    assert not generation.restore


def test_a_generation_of_which_a_worker_is_gone_unheard_is_given_up():
    for first in ("gone", "heard"):
        it = taken_over("worker-0", "worker-1")
        events = [killed("worker-1"), at_work("worker-0", 40, 7)]
        for event in events if first == "gone" else reversed(events):
            it.step(event)
        assert it.orders("worker-0").given_up == 7


def test_a_generation_that_a_worker_has_left_before_it_could_say_so_is_given_up():
    it = taken_over("worker-0", "worker-1")
    it.step(Ticked(10.0))
    it.step(join("worker-1", 7, 40))
    it.step(beat("worker-0", 10.0, 40, generation=7))
    assert it.orders("worker-0").given_up == 6
    it.step(Ticked(10.3))
    assert it.orders("worker-0").given_up == 7


def test_a_worker_that_was_not_observed_is_one_all_the_same_and_keeps_its_name():
    it = taken_over("worker-0")
    it.step(at_work("worker-9", 40, 7))
    assert "worker-9" in it.alive
    assert done(it.step(killed("worker-0"))) == []  # two are wanted, and worker-1 was started
    assert done(it.step(killed("worker-9"))) == [StartWorker("worker-10")]


def test_a_late_call_does_not_repeat_a_generation_of_which_little_is_known():
    it = taken_over("worker-0", "worker-1")
    it.step(at_work("worker-0", 40, 7, 0, (0, 1)))
    it.step(at_work("worker-1", 40, 7, 1, (2, 3)))
    assert it.step(join("worker-1", 6, 38)) == []
    assert formed(it.step(join("worker-0", 7, 40))).number == 8


def test_standbys_of_the_old_master_stay():
    it = taken_over("worker-0", "worker-1", "worker-2", standby=1, standby_after_s=60.0)
    it.step(beat("worker-2", 0.0, phase="warm"))
    it.step(join("worker-2"))
    it.step(join("worker-0", 7, 40))
    assert done(it.step(join("worker-1", 7, 40)))[1:] == []
    assert it.alive == {"worker-0", "worker-1", "worker-2"}


# ---- stragglers ---------------------------------------------------------------------------------


def paced(it, now, steps, **seconds):
    """Time goes by in which each member needs so many seconds for one stream of a step."""
    effects = []
    generation = it.generation
    for worker in it.members:
        name = worker.replace("-", "_")
        hosted = len(generation.streams[worker])
        spent = steps * hosted * seconds[name]
        it.step(
            beat(
                worker,
                now,
                steps,
                generation=generation.number,
                pace=Pace(spent, steps * hosted, steps),
            )
        )
    effects += it.step(Ticked(now))
    return effects


def straggling(**rules):
    it = training(streams=8, grace_s=1000.0, **rules)
    it.step(Ticked(0.0))
    it.step(join("worker-0"))
    it.step(join("worker-1"))
    return it


def test_streams_move_to_faster_members_and_the_reason_names_the_knob():
    it = straggling()
    assert it.generation.streams == {"worker-0": (0, 1, 2, 3), "worker-1": (4, 5, 6, 7)}
    paced(it, 3.0, 20, worker_0=0.01, worker_1=0.03)
    assert not it.orders("worker-0").regroup
    paced(it, 6.0, 40, worker_0=0.01, worker_1=0.03)
    assert it.orders("worker-0").regroup
    effects = all_join(it, 40)
    assert formed(effects).streams == {"worker-0": (0, 1, 2, 3, 6, 7), "worker-1": (4, 5)}
    assert told(effects) == [
        "Streams move to faster workers, as a step becomes shorter by rebalance_gain = 0.15 or "
        "more: worker-0 (1.0 x the fastest's time a stream) goes from 4 streams to 6; worker-1 "
        "(3.0 x the fastest's time a stream) goes from 4 streams to 2."
    ]
    # As fast again, each has its share again.
    for now, steps in ((9.0, 20), (12.0, 40)):
        paced(it, now, steps, worker_0=0.01, worker_1=0.01)
    assert it.orders("worker-1").regroup
    assert {len(hosted) for hosted in formed(all_join(it, 80)).streams.values()} == {4}


def test_the_slowest_keeps_a_stream():
    it = straggling()
    for now, steps in ((3.0, 20), (6.0, 40)):
        paced(it, now, steps, worker_0=0.01, worker_1=9.0)
    assert len(formed(all_join(it, 40)).streams["worker-1"]) == 1


@pytest.mark.parametrize(
    "seconds",
    [
        [(0.01, 0.011)] * 9,  # as good as even
        [(0.01, 0.03), (0.01, 0.01)] * 5,  # now and then
    ],
)
def test_streams_do_not_move_for_noise(seconds):
    it = straggling()
    spent = [0.0, 0.0]
    for turn, each in enumerate(seconds, 1):
        for rank, one in enumerate(each):
            spent[rank] += 20 * 4 * one
            pace = Pace(spent[rank], 80 * turn, 20 * turn)
            it.step(beat(f"worker-{rank}", 3.0 * turn, turn, generation=1, pace=pace))
        it.step(Ticked(3.0 * turn))
        assert not it.orders("worker-0").regroup


def test_where_rebalance_gain_is_nought_streams_stay():
    it = straggling(rebalance_gain=0.0)
    for turn in range(1, 9):
        paced(it, 3.0 * turn, 20 * turn, worker_0=0.01, worker_1=0.09)
        assert not it.orders("worker-0").regroup


# ---- the end ------------------------------------------------------------------------------------


def test_a_result_is_published_and_then_the_job_has_succeeded():
    it = running()
    assert it.step(join("worker-1", 1, 9)) == []
    assert it.step(ResultCame("worker-0", 1, "work/result")) == [Publish("work/result")]
    assert not it.over
    assert it.step(Published()) == [Dismiss("worker-1"), End()]
    assert ended(it, "succeeded")


def test_a_member_that_writes_the_result_is_waited_for_by_the_others():
    it = running()
    it.step(Ticked(0.0))
    it.step(join("worker-1", 1, 9))
    for now in range(1, 30):
        it.step(beat("worker-0", float(now), 9, "exporting", generation=1))
        it.step(beat("worker-1", float(now), 9, "warm", generation=1))
        assert it.step(Ticked(float(now))) == []
    assert it.step(ResultCame("worker-0", 1, "there")) == [Publish("there")]


def test_where_it_dies_the_next_one_writes_it():
    it = running()
    it.step(join("worker-1", 1, 9))
    generation = formed(it.step(killed("worker-0")))
    assert generation.members == ("worker-1",)
    assert it.step(ResultCame("worker-0", 1, "old")) == []
    assert it.step(ResultCame("worker-1", 2, "new")) == [Publish("new")]


def test_a_result_of_an_older_generation_is_refused():
    it = running()
    all_join(it, 9)
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
    assert it.step(crashed("worker-0")) == [Dismiss("worker-0")]
    assert it.step(StopAsked("Ctrl-C")) == []
    assert it.step(Failed("bug", "too late")) == []
    assert it.step(Published()) == [Dismiss("worker-1"), End()]
    assert ended(it, "succeeded")


def test_nor_does_the_end_of_a_worker_that_somebody_else_started_interrupt_that():
    it = Job(Rules(workers=1, starts=False, streams=4))
    it.step(join("worker-0"))
    it.step(ResultCame("worker-0", 1, "there"))
    assert it.step(killed("worker-0")) == []
    it.step(Published())
    assert ended(it, "succeeded")


def test_a_result_that_cannot_be_published_fails_the_job():
    it = running()
    it.step(ResultCame("worker-0", 1, "there"))
    it.step(join("worker-1", 1, 9))
    assert it.step(NotPublished("user", "output: no space left")) == [Dismiss("worker-1"), End()]
    assert ended(it, "failed")
    assert it.failure == Failure("user", "output: no space left", "")


def test_the_first_failure_is_the_one_that_counts():
    it = running()
    it.step(Failed("user", "first"))
    assert it.step(Failed("bug", "second")) == []
    assert it.failure.message == it.reason == "first"


def test_a_job_is_stopped_on_request():
    it = training()
    it.step(join("worker-0"))
    assert it.step(StopAsked("Ctrl-C")) == [Dismiss("worker-0"), End()]
    assert ended(it, "cancelled")
    assert it.reason == "Ctrl-C"
    assert it.failure is None


def test_a_job_that_writes_checkpoints_leaves_one_when_it_is_stopped():
    it = running(checkpoints=True)
    assert it.step(StopAsked("Ctrl-C.")) == []
    assert it.phase == "stopping"
    assert it.reason == "Ctrl-C. A last checkpoint is being written."
    assert it.orders("worker-0").regroup
    assert it.step(join("worker-0", 1, 5)) == []
    # The one with the highest version writes it, and calls again when it is written.
    assert it.step(join("worker-1", 1, 6)) == [Save("worker-1")]
    assert it.step(join("worker-1", 1, 6)) == [
        Dismiss("worker-0"),
        Dismiss("worker-1"),
        End(),
    ]
    assert ended(it, "cancelled")


def test_where_that_worker_dies_another_one_writes_it():
    it = running(checkpoints=True)
    it.step(StopAsked("Ctrl-C."))
    it.step(join("worker-0", 1, 5))
    assert it.step(join("worker-1", 1, 6)) == [Save("worker-1")]
    assert done(it.step(killed("worker-1"))) == [Save("worker-0")]
    assert done(it.step(killed("worker-0"))) == [End()]
    assert ended(it, "cancelled")


def test_a_last_checkpoint_is_not_waited_for_without_end():
    it = running(checkpoints=True)
    it.step(StopAsked("Ctrl-C."))
    for now in (100.0, 107.0, 115.0):
        for worker in ("worker-0", "worker-1"):
            it.step(beat(worker, now, 5, generation=1))
        assert it.step(Ticked(now)) == []
    it.step(join("worker-0", 1, 5))
    assert it.step(Ticked(115.1)) == [Dismiss("worker-0"), End()]
    assert ended(it, "cancelled")


def test_who_asks_twice_does_not_want_to_wait():
    it = running(checkpoints=True)
    it.step(StopAsked("Ctrl-C."))
    assert it.step(StopAsked("Ctrl-C, twice.")) == [End()]
    assert it.reason == "Ctrl-C, twice."


def test_a_result_that_comes_while_the_job_is_stopped_is_published_whole():
    it = running(checkpoints=True)
    it.step(Ticked(100.0))
    it.step(StopAsked("Ctrl-C."))
    assert it.step(ResultCame("worker-0", 1, "there")) == [Publish("there")]
    it.step(Ticked(200.0))
    it.step(Ticked(300.0))
    assert not it.over
    it.step(Published())
    assert ended(it, "succeeded")


def test_a_stop_during_a_takeover_waits_for_the_workers_and_their_checkpoint():
    it = taken_over("worker-0", "worker-1", checkpoints=True)
    assert it.step(StopAsked("Ctrl-C.")) == []
    it.step(join("worker-0", 7, 40))
    assert it.step(join("worker-1", 7, 41)) == [Save("worker-1")]


def test_after_the_end_calls_are_answered_and_nothing_is_started():
    it = running()
    it.step(StopAsked("Ctrl-C"))
    assert it.step(join("worker-0", 1, 5)) == [Dismiss("worker-0")]
    assert it.step(LeaseCalled("worker-0", (), 1)) == [Lease("worker-0", (), finished=True)]
    assert it.step(beat("worker-0", 1.0, 5)) == []
    assert it.orders("worker-0") == Orders(stop=True)
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
    assert ended(it, "succeeded")
    assert it.version == 2


def test_slices_of_a_lost_worker_go_first_unless_it_has_done_them():
    it = predicting(slices=4)
    it.step(LeaseCalled("worker-0", (), 2))
    it.step(LeaseCalled("worker-1", (), 1))
    assert done(it.step(killed("worker-0"))) == [StartWorker("worker-2")]
    assert it.step(LeaseCalled("worker-0", (1,), 1)) == [Lease("worker-0", (), finished=True)]
    assert it.step(LeaseCalled("worker-1", (2,), 1)) == [Lease("worker-1", (0,), finished=False)]
    assert it.version == 2


def test_slices_that_were_done_before_are_not_leased():
    it = predicting(slices=3, done=(0, 1))
    assert it.step(LeaseCalled("worker-0", (), 5)) == [Lease("worker-0", (2,), finished=False)]


def test_a_prediction_waits_for_min_workers_and_says_so_once():
    it = predicting(slices=3, min_workers=2)
    it.step(beat("worker-0", phase="predicting"))
    waits = "1 of min_workers = 2 workers is there; the job waits for more."
    nothing = Lease("worker-0", (), finished=False)
    assert it.step(LeaseCalled("worker-0", (), 1)) == [Note(waits), nothing]
    assert it.step(LeaseCalled("worker-0", (), 1)) == [nothing]
    assert it.step(LeaseCalled("worker-1", (), 1)) == [Lease("worker-1", (0,), finished=False)]


def test_scaling_a_prediction_down_ends_the_youngest_at_its_next_call():
    it = predicting(slices=9)
    it.step(LeaseCalled("worker-1", (), 1))
    assert done(it.step(ScaleAsked(1))) == [StopWorker("worker-1")]
    assert it.step(LeaseCalled("worker-1", (0,), 1)) == [Lease("worker-1", (), finished=True)]
    assert it.version == 1


def test_predicting_workers_of_an_earlier_master_go_on():
    it = Job(Rules(workers=2, slices=3, term=2))
    assert done(it.step(Started(("worker-0", "worker-1"), 2))) == []
    assert it.step(LeaseCalled("worker-0", (1,), 1)) == [Lease("worker-0", (0,), finished=False)]
    assert it.step(LeaseCalled("worker-1", (), 1)) == [Lease("worker-1", (2,), finished=False)]


# ---- any order of events ------------------------------------------------------------------------

STREAMS = 6


class AnyOrder(RuleBasedStateMachine):
    """A training under everything that can happen to its workers and masters, in any order."""

    def __init__(self):
        super().__init__()
        self.rules = Rules(
            workers=3,
            standby=1,
            min_workers=2,
            streams=STREAMS,
            checkpoints=True,
            grace_s=1.0,
            start_grace_s=3.0,
            max_failures=4,
            term=1,
        )
        self.now = 0.0
        self.processes = set()  # that run
        self.forgotten = set()  # processes that the job has given up or seen the end of
        self.waiting = set()  # calls without an answer
        self.calls = {}  # worker → its last call
        self.inside = {}  # worker → the generation it was last told of
        self.versions = {}  # worker → its replica's
        self.heard = {}  # worker → when
        self.newest = (0, 0)  # (term, number) of a generation
        self.started = 0
        self.wanted = 3
        self.published = 0
        self.ended = 0
        self.attempts = 0
        self.begin(())

    def begin(self, observed):
        self.job = Job(self.rules)
        self.generation = None
        self.unheard = set(observed)
        self.step(Started(tuple(sorted(observed)), self.started))

    def step(self, event):
        over = self.job.over
        effects = self.job.step(event)
        for effect in effects:
            if over:
                assert isinstance(effect, Dismiss | Lease)
            self.do(effect)
        return effects

    def do(self, effect):
        match effect:
            case StartWorker(worker):
                assert worker == f"worker-{self.started}"
                self.started += 1
                self.processes.add(worker)
                self.heard[worker] = self.now
            case StopWorker(worker):
                assert worker not in self.waiting
                assert worker not in self.job.members
            case KillWorker(worker):
                assert self.now - self.heard[worker] > 1.0
                self.forget(worker)
            case Form(generation):
                self.formed(generation)
            case Save(worker):
                assert self.job.phase == "stopping"
                assert worker in self.waiting
                self.waiting.discard(worker)
            case Dismiss(worker):
                self.waiting.discard(worker)
            case Publish():
                self.published += 1
            case Note(text):
                assert text == text.strip()
                assert "\n" not in text
            case End():
                self.ended += 1

    def forget(self, worker):
        self.processes.discard(worker)
        self.unheard.discard(worker)
        self.forgotten.add(worker)

    def formed(self, generation):
        told = set(generation.members) & self.waiting
        if generation is self.generation:
            assert told
        else:
            assert (generation.term, generation.number) > self.newest
            assert set(generation.members) <= self.waiting
            assert set(generation.members) <= self.job.alive
            assert not set(generation.members) & self.forgotten
            assert not self.unheard
            assert len(generation.members) >= self.rules.min_workers
            hosted = sum((generation.streams[member] for member in generation.members), ())
            assert sorted(hosted) == list(range(STREAMS))
            # Nobody who waits has a newer replica than the source.
            best = max((self.versions.get(worker, -1) for worker in self.waiting), default=-1)
            assert max(generation.versions.values()) == best
            assert generation.restore == (best < 0)
            self.newest = (generation.term, generation.number)
            self.generation = generation
        for worker in told:
            self.inside[worker] = generation.number
            self.versions[worker] = max(0, *generation.versions.values())
        self.waiting -= told

    def some(self, data, workers):
        return data.draw(st.sampled_from(sorted(workers)))

    def place(self, worker):
        """What its heartbeats say."""
        number, version = self.inside.get(worker, 0), self.versions.get(worker, -1)
        if not number or worker in self.waiting:
            return {"phase": "warm", "version": version, "generation": number}
        return {"phase": "member", "version": version, "generation": number}

    def hear(self, worker):
        self.heard[worker] = self.now
        self.unheard.discard(worker)
        self.step(beat(worker, self.now, **self.place(worker)))

    def call(self, worker):
        self.waiting.add(worker)
        self.unheard.discard(worker)
        number, version = self.inside.get(worker, 0), self.versions.get(worker)
        self.calls[worker] = join(worker, number, version)
        self.step(self.calls[worker])

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def join(self, data):
        self.call(self.some(data, self.processes))

    @rule()
    def all_join(self):
        for worker in sorted(self.processes):
            if worker in self.processes - self.waiting:
                self.call(worker)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def a_step(self, data):
        """Some members have committed it, and some have not."""
        number = max(self.inside.values())
        for worker in sorted(self.processes - self.waiting):
            there = self.inside.get(worker) == number and worker in self.versions
            if there and data.draw(st.booleans()):
                self.versions[worker] += 1

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def join_again_because_the_answer_was_lost(self, data):
        worker = self.some(data, self.calls)
        call = self.calls[worker]
        if worker in self.forgotten or call.generation < self.inside.get(worker, 0):
            if worker in self.processes and worker not in self.waiting:
                # It was not told, then, and received nothing.
                self.inside[worker] = call.generation
                if call.progress is None:
                    self.versions.pop(worker, None)
                else:
                    self.versions[worker] = call.progress.version
            self.waiting.add(worker)
            self.unheard.discard(worker)
            self.step(call)

    @precondition(lambda self: self.forgotten)
    @rule(data=st.data(), version=st.integers(0, 9))
    def who_was_given_up_wakes(self, data, version):
        worker = self.some(data, self.forgotten)
        over = self.job.over
        assert self.step(beat(worker, self.now, version, generation=1)) == []
        assert self.job.orders(worker).stop
        if not over:
            assert self.step(LeaveCalled(worker, "SIGTERM")) == []
        self.waiting.add(worker)
        assert self.step(join(worker, 9, version)) == [Dismiss(worker)]

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), seconds=st.integers(1, 8))
    def time_goes_by_and_some_are_silent(self, data, seconds):
        silent = data.draw(st.sets(st.sampled_from(sorted(self.processes)), max_size=2))
        for _ in range(seconds):
            self.now += 0.4
            for worker in sorted(self.processes - silent):
                self.hear(worker)
            self.step(Ticked(self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), again=st.booleans())
    def a_connection_breaks(self, data, again):
        worker = self.some(data, self.processes)
        self.step(ConnectionBroke(worker, self.now))
        if again:
            self.step(ConnectionMade(worker))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), crashed=st.integers(0, 3))
    def gone(self, data, crashed):
        worker = self.some(data, self.processes)
        self.forget(worker)
        self.waiting.discard(worker)
        self.step(WorkerGone(worker, "exit status 1", crashed=not crashed))

    @precondition(lambda self: self.forgotten)
    @rule(data=st.data())
    def gone_again(self, data):
        alive = self.job.alive
        self.step(killed(self.some(data, self.forgotten)))
        assert self.job.alive == alive

    @precondition(lambda self: self.processes and not self.job.over)
    @rule(data=st.data())
    def leaves(self, data):
        worker = self.some(data, self.processes)
        self.forget(worker)
        self.step(LeaveCalled(worker, "SIGTERM"))
        assert worker not in self.waiting

    @precondition(lambda self: not self.job.over)
    @rule(workers=st.integers(1, 7))
    def scale(self, workers):
        problem = self.job.scale_problem(workers)
        self.step(ScaleAsked(workers))
        assert (self.job.workers == workers) or problem
        self.wanted = self.job.workers

    @precondition(lambda self: not self.job.over and not self.published)
    @rule(data=st.data(), noticed=st.booleans())
    def another_master_takes_over(self, data, noticed):
        lost = set()
        if self.processes and not noticed:
            # One has died meanwhile.
            lost = {self.some(data, self.processes)}
        for worker in lost:
            self.forget(worker)
        self.waiting.clear()
        for known in (self.calls, self.inside, self.versions):
            for worker in known.keys() - self.processes:
                del known[worker]
        self.forgotten.clear()
        for worker in self.processes:
            self.heard[worker] = self.now
        self.rules = dataclasses.replace(self.rules, term=self.rules.term + 1, workers=self.wanted)
        self.begin(self.processes.copy())

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def result(self, data):
        worker = self.some(data, self.inside)
        number = self.inside[worker]
        current = self.job.current(worker, number)
        first = not self.job.over and self.job.phase != "publishing"
        effects = self.step(ResultCame(worker, number, "there"))
        assert effects == ([Publish("there")] if current and first else [])
        assert not current or worker not in self.forgotten

    @precondition(lambda self: self.published and not self.job.over)
    @rule(well=st.booleans())
    def published_(self, well):
        self.step(Published() if well else NotPublished("user", "disk full"))
        assert self.job.over

    @precondition(lambda self: self.newest[1] > 3)
    @rule()
    def stop(self):
        self.step(StopAsked("Ctrl-C."))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), old=st.booleans())
    def fail(self, data, old):
        self.attempts += not old
        worker = self.some(data, self.processes)
        self.step(no(worker, self.attempts))
        assert self.job.goes_on(worker) == (worker in self.job.alive and not self.job.over)

    @invariant()
    def every_call_is_answered_or_has_a_reason_to_wait(self):
        if self.job.over:
            assert not self.waiting
        assert not self.waiting & self.forgotten
        if self.job.phase in ("starting", "running") and self.processes <= self.waiting:
            # Somebody is still to come, or it would have been formed.
            assert self.job.reason.endswith("waits for more.") or self.generation is None

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
            leaving = {w for w in self.job.alive if self.job.phase_of(w) == "leaving"}
            assert len(self.job.alive - leaving) >= self.job.workers
            assert self.processes <= self.job.alive
        assert not self.job.alive & self.forgotten

    @invariant()
    def it_says_why(self):
        assert self.job.reason
        assert "\n" not in self.job.reason

    @invariant()
    def members_are_told_to_regroup_while_others_wait_for_them(self):
        members = set(self.job.members)
        if self.job.phase == "running" and self.waiting - members:
            for member in members - self.waiting:
                assert self.job.orders(member).regroup == (len(members) != self.job.workers)

    def teardown(self):
        """Whatever has happened: if from now on nothing fails, the job comes to its end."""
        for _ in range(40):
            self.now += 0.4
            for worker in sorted(self.processes):
                orders, place = self.job.orders(worker), self.place(worker)
                leaving = worker in self.job.alive and self.job.phase_of(worker) == "leaving"
                if leaving or orders.stop:
                    self.waiting.discard(worker)
                    self.forget(worker)
                    self.step(WorkerGone(worker, "exit status 0"))
                    continue
                self.hear(worker)
                out = place["phase"] == "warm" or orders.given_up >= place["generation"]
                if worker not in self.waiting and (out or orders.regroup):
                    self.call(worker)
            self.step(Ticked(self.now))
            if self.job.over:
                return
        if self.job.phase == "running":
            members = self.job.members
            assert len(members) == self.job.workers
            assert not set(members) & self.waiting
            assert self.step(ResultCame(members[0], self.newest[1], "there"))
        assert self.job.phase == "publishing"
        self.step(Published())
        assert self.job.phase == "succeeded"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    deadline=None, derandomize=True, max_examples=150, stateful_step_count=40
)


class AnyOrderOfLeases(RuleBasedStateMachine):
    """A prediction whose workers repeat calls, are lost, and wake again."""

    def __init__(self):
        super().__init__()
        self.job = Job(Rules(workers=2, slices=6))
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
        (lease,) = [effect for effect in effects if isinstance(effect, Lease)]
        assert lease.worker == worker
        published = [effect for effect in effects if effect is not lease]
        self.published += published == [Publish("")]
        assert not published or lease.finished
        if not over:
            # What is done is done, whoever has done it and whoever holds it.
            self.done += [n for n in reported if 0 <= n < 6 and n not in self.done]
            for held in self.held.values():
                held -= set(reported)
        if worker not in self.lost and not over:
            mine = self.held.get(worker, set()) | set(lease.slices)
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
TestAnyOrderOfLeases.settings = settings(deadline=None, derandomize=True, max_examples=60)


def test_events_and_effects_are_values():
    for kind in (*job.Event.__args__, *job.Effect.__args__):
        assert dataclasses.fields(kind) is not None
        assert kind.__dataclass_params__.frozen
