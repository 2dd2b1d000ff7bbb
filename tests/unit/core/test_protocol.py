"""No schedule of failures loses an element or repeats one: members around the real decisions.

Each process has a replica (progress, and the elements that are in it) and takes part in the
collectives of its generation; a collective may return at any of its members and fail at the others.
Between them stand the real `Job`, `Generation`, `Progress`, tail and `Plan`. All schedules of small
groups are searched; larger ones are drawn at random.
"""

import dataclasses
import functools
import pickle
from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticdl.core import job as jobs
from elasticdl.core import member, progress, streams
from elasticdl.core.progress import Cursor, Progress, Used

STREAMS = 4
EPOCHS = 2
BATCH = 5
PLAN = streams.Plan([5, 3], slice_records=2, streams=STREAMS, seed=4)


# ---- what is to be trained ----------------------------------------------------------------------


@functools.cache
def elements(epoch, stream):
    """The elements of a stream in an epoch, each with its place; the user filters some records."""
    found = []
    index = 0
    while (part := PLAN.slice_of(epoch, stream, index)) is not None:
        kept = [n for n in range(part.start, part.end) if (part.file, n) != (0, 3)]
        found += [
            (Cursor(epoch, index, place), (epoch, part.file, record))
            for place, record in enumerate(kept)
        ]
        index += 1
    return found


def take(stream, epoch, cursor, count):
    """The stream's next `count` elements of this epoch, and what was used."""
    if cursor.epoch != epoch:
        return (), Used(0, cursor)
    rest = [each for each in elements(epoch, stream) if each[0] >= cursor]
    after = rest[count][0] if count < len(rest) else Cursor(epoch + 1)
    taken = tuple(element for _, element in rest[:count])
    return taken, Used(len(taken), after)


class Replica(NamedTuple):
    """A copy of the training state: the "weights" are the elements that were trained."""

    progress: Progress
    trained: tuple


def contribution(replica, hosted, flag):
    """What a member puts into a step's all-reduce: a gradient sum, and the tail."""
    shares = progress.shares(replica.progress, BATCH)
    gradient, used = [], {}
    for stream in hosted:
        cursor = replica.progress.cursors[stream]
        taken, used[stream] = take(stream, replica.progress.epoch, cursor, shares[stream])
        gradient += taken
    return gradient, progress.encode(used, flag, STREAMS)


def beginning():
    empty = [PLAN.slice_of(0, stream, 0) is None for stream in range(STREAMS)]
    return Replica(progress.beginning(empty, EPOCHS), ())


def committed(replica, gradient, tail):
    return Replica(
        progress.advanced(replica.progress, tail.used),
        tuple(sorted([*replica.trained, *gradient])),
    )


@functools.cache
def undisturbed():
    """The replica of each version, as one worker alone comes to it."""
    walk = [beginning()]
    while not walk[-1].progress.finished(EPOCHS, 0):
        gradient, tail = contribution(walk[-1], range(STREAMS), False)
        walk.append(committed(walk[-1], gradient, progress.decode(tail)))
    return walk


def test_the_undisturbed_walk_trains_every_element_once_an_epoch():
    kept = [
        (file, n) for file, count in ((0, 5), (1, 3)) for n in range(count) if (file, n) != (0, 3)
    ]
    expected = tuple(sorted((epoch, *each) for epoch in range(EPOCHS) for each in kept))
    assert undisturbed()[-1].trained == expected
    assert 4 <= len(undisturbed()) <= 8


# ---- the world ----------------------------------------------------------------------------------


class Process(NamedTuple):
    """A worker's process.

    `at` is calling (it has left its generation, or never had one), waiting (its call is with the
    master), meeting (it is told of a generation, and receives), stepping (it is in a step's
    all-reduce), or writing (the result). `told` is the generation that it was told of last, `ops`
    the number of collectives that have returned in it.
    """

    name: str
    at: str = "calling"
    told: int = 0
    replica: int = -1
    ops: int = 0
    broke: bool = False  # it has left its generation because of an error
    leaving: bool = False
    lost: bool = False  # the master does without it, but it does not know that
    heard: bool = True  # by the present master


class World(NamedTuple):
    """Everything there is at one instant; numbers stand for values in the `Protocol`'s tables."""

    processes: tuple  # Process, by name
    job: int
    ops: tuple = ()  # ((generation, index), ((rank, replica, flag), ...)), sorted
    checkpoint: tuple = ()  # (term, generation, version, replica), the newest
    dead: tuple = ()  # whose end the master has not seen yet
    published: bool = False
    faults: int = 0  # that may still come
    takeovers: int = 0
    saves: int = 0


class Violation(AssertionError):
    """A schedule that must not be."""


def must(holds, what):
    if not holds:
        raise Violation(what)


IN_GENERATION = ("meeting", "stepping", "writing")


class Protocol:
    """All worlds that follow from a world. Values that many worlds share are kept in tables.

    Failures come as long as no replica is beyond the version `until`.
    """

    def __init__(self, workers, *, until=99):
        self.until = until
        self.rules = jobs.Rules(
            workers=workers, streams=STREAMS, rebalance_gain=0.0, max_failures=99, term=1
        )
        self.replicas = {}
        self.replica_list = []
        self.generations = {}
        self.generation_list = [None]
        self.jobs = {}
        self.job_list = []
        self.pickles = []  # of the jobs, to make copies of
        self.events = {}
        self.reduced = {}
        self.good = set()
        for replica in undisturbed():
            self.replica(replica)

    # ---- tables --------------------------------------------------------------------------------

    def replica(self, value):
        """The number of a replica, which holds exactly what its version's number names."""
        found = self.replicas.get(value)
        if found is None:
            version = value.progress.version
            walk = undisturbed()
            must(version < len(walk), f"version {version} is beyond the end")
            must(
                value == walk[version],
                f"version {version} holds {value}; it is {walk[version]}",
            )
            found = self.replicas[value] = len(self.replica_list)
            self.replica_list.append(value)
        return found

    def generation(self, value):
        key = repr(value)
        found = self.generations.get(key)
        if found is None:
            found = self.generations[key] = len(self.generation_list)
            self.generation_list.append(value)
        return found

    def order(self, told):
        """Generations are ordered by (term, number); 0 is none."""
        it = self.generation_list[told]
        return (it.term, it.number) if it else (0, 0)

    def job(self, value):
        # What is only told, or what only delays a start, does not tell states apart; nor what is
        # of use to the first generation, or the first of a new master, alone.
        silent = {"reason", "version", "rules", "_seen", "_early_losses", "_standby_due"}
        if value.generation is not None:
            silent.add("_lost_before")
        known = value.generation is not None and not value._adopting
        if known:
            silent.add("_missed")
        key = tuple(
            _frozen(getattr(value, each.name))
            for each in dataclasses.fields(value)
            if each.name not in silent
        )
        seen = tuple(
            (name, each.generation, each.rank, each.version >= 0, each.phase)
            for name, each in sorted(value._seen.items())
            if not known or not (name in value.members or name in value._waiting)
        )
        key = (key, seen, value.rules.term)
        found = self.jobs.get(key)
        if found is None:
            found = self.jobs[key] = len(self.job_list)
            self.job_list.append(value)
            self.pickles.append(pickle.dumps(value))
        return found

    def happens(self, number, key, event):
        """The job after an event, and the effects."""
        found = self.events.get((number, key))
        if found is None:
            after = pickle.loads(self.pickles[number])
            effects = after.step(event())
            found = self.events[number, key] = self.job(after), effects
        return found

    # ---- what a member does: the real decisions -------------------------------------------------

    def begins_with(self, generation, rank, own, source):
        """The replica with which a member leaves the first meeting."""
        if member.begin(generation, rank) is member.Begin.RECEIVE:
            return source
        return own

    def goes_on(self, tail, at):
        return member.after_step(tail, at, EPOCHS, 0)

    def next_replica(self, mine, gradient, tail):
        return self.replica(committed(self.replica_list[mine], gradient, tail))

    def restored(self, world):
        return world.checkpoint[3] if world.checkpoint else self.replica(beginning())

    def kept(self, before, new):
        """The newest checkpoint once another one is written."""
        return max(before, new)

    # ---- how worlds follow ---------------------------------------------------------------------

    def begin(self, faults, takeovers, saves):
        it = jobs.Job(self.rules)
        world = World((), self.job(it), faults=faults, takeovers=takeovers, saves=saves)
        return self.event(world, "started", jobs.Started)[0]

    def event(self, world, key, event):
        """The worlds that follow from an event at the master.

        In the first one all answers arrive; in others, for which there must be a fault left, one
        of them is lost on its way.
        """
        before = self.job_list[world.job].generation
        after, effects = self.happens(world.job, key, event)
        world = world._replace(job=after)
        told = ()
        for effect in effects:
            if isinstance(effect, jobs.Form):
                if effect.generation != before:
                    self.must_restore(world, effect.generation)
                there = {p.name for p in world.processes if p.at == "waiting"}
                told = tuple(name for name in effect.generation.members if name in there)
        worlds = [self.effects(world, effects, "")]
        if told and world.faults and self.still_fails(world):
            fewer = world._replace(faults=world.faults - 1)
            worlds += [self.effects(fewer, effects, name) for name in told]
        return worlds

    def effects(self, world, effects, unreached):
        for effect in effects:
            match effect:
                case jobs.StartWorker(name):
                    world = _with(world, Process(name))
                case jobs.Dismiss(name):
                    it = _find(world, name)
                    if it is not None and it.at == "waiting":
                        world = _without(world, name)
                case jobs.Form(generation):
                    world = self.formed(world, generation, unreached)
                case jobs.Publish():
                    must(not world.published, "a result is published twice")
                    world = world._replace(published=True)
        return self.tidy(world)

    def must_restore(self, world, generation):
        """A generation begins with a checkpoint only if no worker has a replica."""
        counted = self.job_list[world.job].alive
        must(
            not generation.restore
            or all(
                p.replica < 0 or p.leaving or not p.heard
                for p in world.processes
                if p.name in counted
            ),
            f"{generation} begins with a checkpoint although there is a replica",
        )

    def formed(self, world, generation, unreached):
        number = self.generation(generation)
        for name in generation.members:
            it = _find(world, name)
            if it is None or it.at != "waiting":
                continue
            if name == unreached:
                world = _with(world, it._replace(at="calling"))
                continue
            must(self.order(number) > self.order(it.told), f"{name} is told of {generation}")
            it = it._replace(at="meeting", told=number, ops=0, broke=False)
            if generation.restore and generation.members[generation.source] == name:
                it = it._replace(replica=self.restored(world))
            if len(generation.members) == 1:
                world = self.step(world, it)
            else:
                world = self.arrives(world, it)
        return world

    def arrives(self, world, it, flag=False):
        """A process enters its generation's next collective."""
        key = it.told, it.ops
        ops = dict(world.ops)
        rank = self.generation_list[it.told].members.index(it.name)
        ops[key] = tuple(sorted((*ops.get(key, ()), (rank, it.replica, flag))))
        return _with(world._replace(ops=tuple(sorted(ops.items()))), it)

    def step(self, world, it):
        """A process begins a step, or, if none is left, the end."""
        generation = self.generation_list[it.told]
        if self.replica_list[it.replica].progress.finished(EPOCHS, 0):
            writes = generation.members[0] == it.name
            return _with(world, it._replace(at="writing" if writes else "calling"))
        it = it._replace(at="stepping", ops=max(1, it.ops))
        orders = self.job_list[world.job].orders(it.name)
        return self.arrives(world, it, (orders.regroup and not it.lost) or it.leaving)

    def complete(self, world, it):
        """What all members have put into the collective that this one is in, once they have."""
        there = dict(world.ops).get((it.told, it.ops), ())
        return there if len(there) == len(self.generation_list[it.told].members) else ()

    def returns(self, world, it):
        """The collective that a process is in returns, at this process."""
        there = self.complete(world, it)
        generation = self.generation_list[it.told]
        rank = generation.members.index(it.name)
        if it.at == "meeting":
            source = there[generation.source][1]
            replica = self.begins_with(generation, rank, it.replica, source)
            return [self.tidy(self.step(world, it._replace(replica=replica, ops=1)))]
        gradient, tail = self.sum_of(it.told, there)
        it = it._replace(replica=self.next_replica(it.replica, gradient, tail), ops=it.ops + 1)
        at = self.replica_list[it.replica].progress
        goes_on = self.goes_on(tail, at)
        flagged = any(flag for _, _, flag in there)
        must(
            flagged == (goes_on is member.After.REGROUP),
            "some have asked to regroup, and others step on",
        )
        match goes_on:
            case member.After.REGROUP:
                return [self.tidy(_with(world, it._replace(at="calling")))]
            case _:
                return [self.tidy(self.step(world, it))]

    def sum_of(self, told, there):
        key = told, there
        found = self.reduced.get(key)
        if found is None:
            generation = self.generation_list[told]
            must(
                len({replica for _, replica, _ in there}) == 1,
                f"members of {generation} step with different replicas: {there}",
            )
            parts = [
                contribution(
                    self.replica_list[replica],
                    generation.streams[generation.members[rank]],
                    flag,
                )
                for rank, replica, flag in there
            ]
            total = [sum(numbers) for numbers in zip(*(tail for _, tail in parts), strict=True)]
            gradient = tuple(sorted(each for taken, _ in parts for each in taken))
            found = self.reduced[key] = gradient, progress.decode(total)
        return found

    def breaks(self, world, it):
        """Whether the collective that a process is in may fail at it.

        What has returned at one that then leaves in good order has been sent to all.
        """
        it_job = self.job_list[world.job]
        generation = self.generation_list[it.told]
        orders = it_job.orders(it.name)
        if orders.stop or orders.given_up >= generation.number:
            return True
        others = {p.name: p for p in world.processes}
        if any(name not in others for name in generation.members):
            return True
        out = [
            others[name]
            for name in generation.members
            if others[name].told != it.told or others[name].at not in IN_GENERATION
        ]
        return any(p.broke for p in out) or (bool(out) and not self.complete(world, it))

    def call(self, world, it):
        if it.leaving:
            return self.leaves(world, it)
        number = self.generation_list[it.told].number if it.told else 0
        at = self.replica_list[it.replica].progress if it.replica >= 0 else None
        world = _with(world, it._replace(at="waiting", heard=True))
        return self.event(
            world,
            ("join", it.name, number, it.replica),
            lambda: jobs.JoinCalled(it.name, f"{it.name}:1", number, at),
        )

    def leaves(self, world, it):
        world = _without(world, it.name)
        return self.event(world, ("leave", it.name), lambda: jobs.LeaveCalled(it.name, "SIGTERM"))

    def finishes(self, world, it):
        generation = self.generation_list[it.told]
        before = world.published
        worlds = self.event(
            _with(world, it._replace(at="calling")),
            ("result", it.name, generation.number),
            lambda: jobs.ResultCame(it.name, generation.number, "there"),
        )
        for after in worlds:
            if after.published and not before:
                at = self.replica_list[it.replica].progress
                must(at.finished(EPOCHS, 0), f"version {at.version} is published")
                must(not it.lost, f"{it.name} was given up, and publishes")
                # A master that was shown none of the workers there are counts anew, and the next
                # one cannot tell its generations from older ones of the same number.
                must(
                    not any(
                        self.order(p.told) > self.order(it.told)
                        and self.order(p.told)[1] > generation.number
                        for p in world.processes
                    ),
                    f"{it.name} publishes for an older generation",
                )
        return worlds

    def gone(self, world, name):
        world = world._replace(dead=tuple(each for each in world.dead if each != name))
        return self.event(world, ("gone", name), lambda: jobs.WorkerGone(name, "killed"))

    def hear(self, world, it):
        generation = self.generation_list[it.told]
        inside = it.at in IN_GENERATION
        rank = generation.members.index(it.name) if inside else -1
        phase = {"stepping": "member", "writing": "exporting"}.get(it.at, "warm")
        version = self.replica_list[it.replica].progress.version if it.replica >= 0 else -1
        return self.event(
            _with(world, it._replace(heard=True)),
            ("beat", it.name, phase, it.told, version),
            lambda: jobs.HeartbeatCame(
                it.name,
                0.0,
                version,
                phase,
                generation.number if generation else 0,
                rank,
                generation.streams[it.name] if inside else (),
            ),
        )

    def save(self, world, it):
        version = self.replica_list[it.replica].progress.version
        number = (*self.order(it.told), version, it.replica)
        kept = self.kept(world.checkpoint, number)
        must(kept >= world.checkpoint, f"checkpoint {number} takes {world.checkpoint}'s place")
        return [world._replace(checkpoint=kept, saves=world.saves - 1)]

    def takeover(self, world, observed):
        rules = dataclasses.replace(self.rules, term=self.job_list[world.job].rules.term + 1)
        processes = tuple(
            p._replace(
                at="calling" if p.at == "waiting" else p.at,
                lost=False,
                # Those that are only starting have nothing to say.
                heard=False,
            )
            for p in world.processes
        )
        used = max((int(p.name.partition("-")[2]) for p in processes), default=-1)
        world = world._replace(
            job=self.job(jobs.Job(rules)),
            processes=processes,
            dead=(),
            takeovers=world.takeovers - 1,
        )
        return self.event(
            world, ("started", observed, used), lambda: jobs.Started(observed, used + 1)
        )

    def tidy(self, world):
        """Forgets what makes no difference any more, as collectives that nobody waits for."""
        least = {}
        for p in world.processes:
            if p.at in ("meeting", "stepping"):
                least[p.told] = min(p.ops, least.get(p.told, p.ops))
        ops = tuple(
            each for each in world.ops if each[0][0] in least and each[0][1] >= least[each[0][0]]
        )
        processes = tuple(
            p
            if p.at in ("meeting", "stepping")
            else p._replace(ops=0, broke=p.broke and p.told in least)
            for p in world.processes
        )
        return world._replace(ops=ops, processes=processes)

    # ---- all that can happen -------------------------------------------------------------------

    def ordinary(self, world):
        """What happens without a failure, as (what, worlds); in a fair order."""
        for name in world.dead:
            yield f"{name} is seen to be gone", functools.partial(self.gone, world, name)
        for it in world.processes:
            if not it.heard and it.told and it.at != "waiting":
                yield f"{it.name} is heard", functools.partial(self.hear, world, it)
        for it in world.processes:
            name = it.name
            if it.at in ("meeting", "stepping") and self.complete(world, it):
                yield f"{name} returns", functools.partial(self.returns, world, it)
            elif it.at == "calling":
                yield f"{name} calls", functools.partial(self.call, world, it)
            elif it.at == "writing":
                yield f"{name} finishes", functools.partial(self.finishes, world, it)
            elif it.at == "waiting" and it.leaving:
                yield f"{name} leaves", functools.partial(self.leaves, world, it)
        for it in world.processes:
            if it.at in ("meeting", "stepping") and self.breaks(world, it):
                out = self.tidy(_with(world, it._replace(at="calling", broke=True)))
                yield f"{it.name} sees an error", functools.partial(list, (out,))

    def still_fails(self, world):
        versions = [
            self.replica_list[p.replica].progress.version for p in world.processes if p.replica >= 0
        ]
        return max(versions, default=0) <= self.until

    def failures(self, world):
        if not self.still_fails(world):
            return
        if world.faults:
            fewer = world._replace(faults=world.faults - 1)
            for it in world.processes:
                name = it.name
                dead = fewer.dead if it.lost else tuple(sorted((*fewer.dead, name)))
                out = self.tidy(_without(fewer, name)._replace(dead=dead))
                yield f"{name} dies", functools.partial(list, (out,))
                if it.at in ("meeting", "stepping"):
                    cut = self.tidy(_with(fewer, it._replace(at="calling", broke=True)))
                    yield f"{name}'s connection breaks", functools.partial(list, (cut,))
                if not it.lost and it.told:
                    gone = _with(fewer, it._replace(lost=True))
                    yield f"{name} is given up", functools.partial(self.gone, gone, name)
                if not it.leaving and it.told:
                    leaving = _with(fewer, it._replace(leaving=True))
                    yield f"{name} is told to leave", functools.partial(list, (leaving,))
        if world.saves:
            for it in world.processes:
                if it.told and it.replica >= 0:
                    yield f"{it.name} writes a checkpoint", functools.partial(self.save, world, it)
        if world.takeovers:
            alive = tuple(p.name for p in world.processes)
            known = tuple(p.name for p in world.processes if not p.lost)
            for observed in dict.fromkeys((alive, known)):
                yield (
                    f"another master finds {observed}",
                    functools.partial(self.takeover, world, observed),
                )

    def over(self, world):
        return world.published

    def comes_to_its_end(self, world):
        """Without further failures the job ends, with every element trained once an epoch."""
        passed = []
        while world not in self.good:
            passed.append(world)
            must(len(passed) < 500, "the job goes on and on")
            if self.over(world):
                break
            following = next(self.ordinary(world), None)
            must(following is not None, f"nobody can do anything: {world}")
            what, worlds = following
            try:
                world = worlds()[0]
            except Violation as violation:
                raise Violation(f"{violation}\n  then, without a failure: {what}") from violation
        self.good.update(passed)

    def settled(self, world):
        """Whether nothing but the undisturbed rest can follow."""
        first = world.processes[0] if world.processes else None
        return (
            first is not None
            and not (world.dead or ((world.faults or world.takeovers) and self.still_fails(world)))
            and all(
                p.at == "stepping"
                and p.heard
                and not (p.lost or p.leaving)
                and (p.told, p.ops, p.replica) == (first.told, first.ops, first.replica)
                for p in world.processes
            )
            and len(world.processes) == self.rules.workers
        )

    def search(self, world, limit=10**9):
        """Goes through all worlds that can follow, the nearest first, up to so many.

        Returns:
            How many worlds and how many transitions there are.

        Raises:
            Violation: with the schedule that leads to it.
        """
        came_from = {world: None}
        waiting = deque([world])
        transitions = 0
        while waiting and len(came_from) < limit:
            world = waiting.popleft()
            try:
                self.comes_to_its_end(world)
                if self.over(world) or self.settled(world):
                    continue
                for what, worlds in (*self.ordinary(world), *self.failures(world)):
                    for after in worlds():
                        transitions += 1
                        if after not in came_from:
                            came_from[after] = world, what
                            waiting.append(after)
            except Violation as violation:
                raise Violation(f"{violation}\n{_schedule(came_from, world)}") from violation
        return len(came_from), transitions


def _schedule(came_from, world):
    steps = []
    while came_from[world] is not None:
        before, what = came_from[world]
        steps.append(f"  {what}")
        world = before
    return "\n".join([*reversed(steps), f"  {world}"])


def _find(world, name):
    return next((p for p in world.processes if p.name == name), None)


def _without(world, name):
    return world._replace(processes=tuple(p for p in world.processes if p.name != name))


def _with(world, process):
    others = [p for p in world.processes if p.name != process.name]
    return world._replace(processes=tuple(sorted((*others, process))))


def _frozen(value):
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(each)) for key, each in value.items()))
    if isinstance(value, set | frozenset):
        return tuple(sorted(value))
    return value if isinstance(value, int | float | str | None) else repr(value)


# ---- all schedules of small groups --------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "faults", "takeovers", "saves", "until", "worlds"),
    [
        (2, 1, 0, 1, 99, 10**6),
        (3, 0, 1, 0, 99, 10**6),
        (3, 1, 0, 0, 1, 10**6),
        # The nearest of some millions of worlds; `test_nor_does_a_long_one...` reaches further.
        (2, 1, 1, 0, 99, 40_000),
        (2, 2, 0, 0, 99, 40_000),
        (2, 3, 1, 1, 99, 15_000),
        (3, 2, 1, 1, 99, 15_000),
    ],
)
def test_no_schedule_loses_or_repeats_an_element(workers, faults, takeovers, saves, until, worlds):
    """The replicas are those that their versions name, and every job comes to its end."""
    protocol = Protocol(workers, until=until)
    found, _ = protocol.search(protocol.begin(faults, takeovers, saves), limit=worlds)
    assert found >= min(worlds, 10_000)


WALKS = Protocol(3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=40, max_size=160))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_nor_does_a_long_one_with_many_failures(choices):
    world = WALKS.begin(faults=6, takeovers=3, saves=3)
    for kind, which in choices:
        ordinary, failures = list(WALKS.ordinary(world)), list(WALKS.failures(world))
        following = failures if failures and (kind == 0 or not ordinary) else ordinary
        if not following or WALKS.over(world):
            break
        _, worlds = following[which % len(following)]
        after = worlds()
        world = after[which // len(following) % len(after)]
    WALKS.comes_to_its_end(world)


# ---- the search finds what is wrong -------------------------------------------------------------


class KeepsItsProgress(Protocol):
    """A member takes the source's weights, but goes on at its own place."""

    def begins_with(self, generation, rank, own, source):
        received = super().begins_with(generation, rank, own, source)
        if own < 0:
            return received
        mine, theirs = self.replica_list[own], self.replica_list[received]
        return self.replica(Replica(mine.progress, theirs.trained))


class ReceivesNothing(Protocol):
    """A member that is behind goes on with what it has."""

    def begins_with(self, generation, rank, own, source):
        return own if own >= 0 else source


class WrongSource(Protocol):
    """The last member is the source, whatever its version."""

    def formed(self, world, generation, unreached):
        last = len(generation.members) - 1
        return super().formed(world, dataclasses.replace(generation, source=last), unreached)


class IgnoresTheFlag(Protocol):
    def goes_on(self, tail, at):
        return super().goes_on(dataclasses.replace(tail, regroup=0), at)


class AppliesTwice(Protocol):
    """What a step did in vain is still there when it is done again."""

    def next_replica(self, mine, gradient, tail):
        after = super().next_replica(mine, gradient, tail)
        if tail.regroup:
            trained = tuple(sorted([*self.replica_list[after].trained, *gradient]))
            return self.replica(self.replica_list[after]._replace(trained=trained))
        return after


class LastCheckpointWins(Protocol):
    """Files are ordered by when they were written, whoever wrote them."""

    def kept(self, before, new):
        return new


@pytest.mark.parametrize(
    ("planted", "saves", "what"),
    [
        (KeepsItsProgress, 0, "version 0 holds"),
        (ReceivesNothing, 0, "step with different replicas"),
        (WrongSource, 0, "step with different replicas"),
        (IgnoresTheFlag, 0, "others step on"),
        (AppliesTwice, 0, "holds"),
        (LastCheckpointWins, 2, "'s place"),
    ],
)
def test_a_planted_mistake_is_found_with_its_schedule(planted, saves, what):
    protocol = planted(2)
    with pytest.raises(Violation, match=what) as found:
        protocol.search(protocol.begin(faults=1, takeovers=0, saves=saves), limit=100_000)
    assert "  worker-0 calls" in str(found.value)
