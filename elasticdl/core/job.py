"""Job.step(event) → [effect]: the only way that a job's state changes."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from elasticdl.core import failures, leases, membership, pods
from elasticdl.core.failures import Failure
from elasticdl.core.progress import Progress

# ---- events: what happened ---------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """This master begins. `observed` are the workers that exist already, which an earlier master
    has left; `next_number` is greater than that of any worker there ever was.
    """

    observed: tuple[str, ...] = ()
    next_number: int = 0


@dataclass(frozen=True)
class JoinCalled:
    """A worker waits for the generation after `generation`, the last one that it was told of (0:
    none); `progress` None: it has no replica.
    """

    worker: str
    address: str
    generation: int
    progress: Progress | None


@dataclass(frozen=True)
class HeartbeatCame:
    """A worker is alive at `now` (seconds of any clock that only rises).

    Args:
        version: of its replica; -1: it has none.
        generation, rank, streams: its place, where `phase` says that it is a member.
        pace: measured in that generation.
    """

    worker: str
    now: float
    version: int = -1
    phase: str = "starting"
    generation: int = 0
    rank: int = -1
    streams: tuple[int, ...] = ()
    pace: membership.Pace = membership.NO_PACE


@dataclass(frozen=True)
class Ticked:
    """Time went by."""

    now: float


@dataclass(frozen=True)
class ConnectionMade:
    """A worker follows its orders from now on."""

    worker: str


@dataclass(frozen=True)
class ConnectionBroke:
    """The connection over which a worker followed its orders has broken."""

    worker: str
    now: float


@dataclass(frozen=True)
class WorkerPends:
    """A worker's process cannot start yet, for `reason`, in words; empty: nothing is in its way."""

    worker: str
    reason: str


@dataclass(frozen=True)
class WorkerTaken:
    """The cluster takes a worker away, for `reason`, in words: it was told to end, and is about to
    leave.
    """

    worker: str
    reason: str


@dataclass(frozen=True)
class WorkerGone:
    """A worker's process has ended; `trace` is the end of what it printed.

    `crashed`: by its own fault, as far as can be told; otherwise it was killed or told to end.
    `kind` says whose fault, as in `Failed`.
    """

    worker: str
    reason: str
    crashed: bool = False
    trace: str = ""
    kind: str = "bug"


@dataclass(frozen=True)
class LeaveCalled:
    """A worker that was told to end leaves now; a member does so at the end of a step."""

    worker: str
    reason: str


@dataclass(frozen=True)
class LeaseCalled:
    """A predicting worker has written the parts of `done` and asks for `most` slices."""

    worker: str
    done: tuple[int, ...]
    most: int


@dataclass(frozen=True)
class ResultCame:
    """A member has put the complete result of training or evaluation aside, to be published."""

    worker: str
    generation: int
    result: str


@dataclass(frozen=True)
class Published:
    """The result is in the output."""


@dataclass(frozen=True)
class NotPublished:
    """The result could not be put into the output; `kind` is as in `Failed`."""

    kind: str
    message: str
    trace: str = ""


@dataclass(frozen=True)
class Failed:
    """Something failed: `kind` is user, user_code or bug (who must act).

    Args:
        worker: who says so, if it is one.
        slices: that it was at, in words.
        phase: of the worker; what fails while it is starting would fail again.
        attempt: tells a worker's failures apart.
    """

    kind: str
    message: str
    trace: str = ""
    worker: str = ""
    slices: tuple[str, ...] = ()
    phase: str = "starting"
    attempt: int = 0


@dataclass(frozen=True)
class ScaleAsked:
    """Somebody wants another number of workers; `Job.scale_problem` says whether it can be."""

    workers: int


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants the job to stop."""

    reason: str


Event = (
    Started
    | JoinCalled
    | HeartbeatCame
    | Ticked
    | ConnectionMade
    | ConnectionBroke
    | WorkerPends
    | WorkerTaken
    | WorkerGone
    | LeaveCalled
    | LeaseCalled
    | ResultCame
    | Published
    | NotPublished
    | Failed
    | ScaleAsked
    | StopAsked
)

# ---- effects: what is to be done ---------------------------------------------------------------


@dataclass(frozen=True)
class StartWorker:
    worker: str
    delay_s: float = 0.0


@dataclass(frozen=True)
class StopWorker:
    """Tells a worker that nobody needs to end in good order."""

    worker: str


@dataclass(frozen=True)
class KillWorker:
    worker: str
    reason: str


@dataclass(frozen=True)
class Form:
    """Answers those of its members that wait: this is their generation."""

    generation: membership.Generation


@dataclass(frozen=True)
class Save:
    """Answers this waiting worker: it is to write a checkpoint, and to call again."""

    worker: str


@dataclass(frozen=True)
class Dismiss:
    """Answers this waiting worker: there is no generation for it, it is to end."""

    worker: str


@dataclass(frozen=True)
class Lease:
    """Answers a predicting worker. No slices: wait, or, if `finished`, end."""

    worker: str
    slices: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Publish:
    """Moves the result into the output; `result` is what `ResultCame` said, or empty."""

    result: str


@dataclass(frozen=True)
class Note:
    """A decision and its reason, in one sentence, for the log and for who watches the job."""

    text: str


@dataclass(frozen=True)
class End:
    """The job is over; workers that still run are to stop."""


Effect = (
    StartWorker | StopWorker | KillWorker | Form | Save | Dismiss | Lease | Publish | Note | End
)


@dataclass(frozen=True)
class Orders:
    """What a worker is to do besides what it does; the newest orders replace those before.

    Args:
        regroup: raise the flag in the next step's tail.
        stop: the job is over, or this worker is lost.
        given_up: generations up to this one have lost a member: wait for it no longer.
    """

    regroup: bool = False
    stop: bool = False
    given_up: int = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a job is and what it puts up with.

    Args:
        workers: how many workers there should be at work.
        starts: whether this job starts its workers; otherwise somebody else does.
        min_workers: with fewer the job waits.
        standby: warm workers to have besides.
        standby_after_s: seconds at work before the first standby is started.
        streams: number of streams; 0 for a prediction, which has no generations.
        slices: number of slices to lease; 0 for all but a prediction.
        done: slices that need not be leased.
        checkpoints: whether a job that is stopped leaves a checkpoint.
        grace_s: a worker at work that was not heard from for longer is given up.
        start_grace_s: the same for one that is starting or writes the result, when Python may be
            busy for seconds without a break.
        max_failures: failures of user code, or crashes, at which the job stops.
        rebalance_gain: streams move to faster workers where that makes a step shorter by this
            share; 0: never.
        term: of this master.
    """

    workers: int
    starts: bool = True
    min_workers: int = 1
    standby: int = 0
    standby_after_s: float = 0.0
    streams: int = 0
    slices: int = 0
    done: tuple[int, ...] = ()
    checkpoints: bool = False
    grace_s: float = 1.0
    start_grace_s: float = 60.0
    max_failures: int = 3
    rebalance_gain: float = 0.15
    term: int = 0


AT_WORK = ("member", "evaluating", "exporting")  # phases of members of a generation
_BUSY = ("starting", "exporting")
_UNHEARD_GRACES = 3  # times grace_s, for a worker to find its new master
_STOP_S = 15.0  # for a last checkpoint
_BROKEN_S = 0.2  # for a worker whose connection broke to show that it lives
_STALL_S = 0.25  # for the other members to notice that one has left their generation
_PACE_S = 2.0  # that a comparison of members' paces takes in
_PACE_STEPS = 10
_PACES_AGREE = 2  # comparisons in a row that have to come to the same end


@dataclass
class _Seen:
    """What a worker's last heartbeat said, and when it came."""

    at: float
    phase: str = "starting"
    version: int = -1
    generation: int = 0
    rank: int = -1
    pace: membership.Pace = membership.NO_PACE


@dataclass
class Job:
    """The state of one job.

    `phase` is starting, running, stopping, publishing, succeeded, failed or cancelled; `reason`
    says in one sentence why. `version` is the replicas'; in a prediction, the slices done.
    `workers` is how many there should be at work.
    """

    rules: Rules
    phase: str = "starting"
    reason: str = "Workers are starting."
    failure: Failure | None = None
    generation: membership.Generation | None = None
    version: int = 0
    _now: float | None = None
    _alive: set[str] = field(default_factory=set)
    _pending: dict[str, str] = field(default_factory=dict)  # those that cannot start, and why
    _lost: set[str] = field(default_factory=set)  # names are not used again
    _leaving: set[str] = field(default_factory=set)  # alive, but not needed any more
    _unheard: set[str] = field(default_factory=set)  # left by an earlier master
    _missed: bool = False  # one of those was lost before it could say whether it was a member
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _broken: dict[str, float] = field(default_factory=dict)  # connections, since when
    _waiting: dict[str, membership.Candidate] = field(default_factory=dict)
    _waiting_since: dict[str, float] = field(default_factory=dict)
    _given_up: int = 0
    _adopting: bool = False  # the generation is an earlier master's, known from heartbeats
    _next_number: int = 0
    _early_losses: int = 0  # in a row
    _lost_before: int = 0  # before the first generation
    _failures: list[Failure] = field(default_factory=list)
    _attempts: set[tuple[str, int]] = field(default_factory=set)
    _standby_due: bool = False
    _formed_at: float = 0.0
    _stop_reason: str = ""
    _stop_by: float | None = None
    _saver: str = ""
    _costs: dict[str, float] = field(default_factory=dict)
    _compared_at: float = 0.0
    _paces: dict[str, membership.Pace] = field(default_factory=dict)
    _agreed: int = 0

    def __post_init__(self) -> None:
        self.leases = leases.Leases(self.rules.slices, self.rules.done)
        self.version = self.leases.done
        self.workers = self.rules.workers

    # ---- questions ---------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.phase in ("succeeded", "failed", "cancelled")

    @property
    def alive(self) -> frozenset[str]:
        """Workers whose process has not ended, as far as is known."""
        return frozenset(self._alive)

    @property
    def members(self) -> tuple[str, ...]:
        """The living members of the current generation, in rank order."""
        if self.generation is None:
            return ()
        return tuple(worker for worker in self.generation.members if worker in self._alive)

    def phase_of(self, worker: str) -> str:
        """What a living worker does, in one word."""
        if worker in self._leaving:
            return "leaving"
        if worker in self._pending:
            return "pending"
        seen = self._seen.get(worker)
        phase = seen.phase if seen is not None else "starting"
        standing_by = worker in self._waiting and worker not in self.members
        return "standby" if phase == "warm" and standing_by and self.members else phase

    def orders(self, worker: str) -> Orders:
        """What this worker is to do now."""
        if self.over or worker in self._lost:
            return Orders(stop=True)
        given_up, seen = self._given_up, self._seen.get(worker)
        if seen is not None and worker not in self._waiting and worker not in self.members:
            # Wherever it is, it is not with the others.
            given_up = max(given_up, seen.generation)
        return Orders(regroup=self._regroups(worker), given_up=given_up)

    def current(self, worker: str, generation: int) -> bool:
        """Whether this worker speaks for the current generation; no other's result counts.

        Which one that is, a new master does not know until it has heard all workers.
        """
        return (
            self.generation is not None
            and not self._unheard
            and self.generation.number == generation
            and worker in self.members
        )

    def goes_on(self, worker: str) -> bool:
        """Whether a worker that has failed is to try again."""
        return not self.over and worker in self._alive

    def last_replica(self, worker: str) -> bool:
        """Whether, with this worker, the last replica would be gone."""
        if worker not in self.members:
            return False
        waiting = any(c.progress is not None for w, c in self._waiting.items() if w != worker)
        return not waiting and all(member == worker for member in self.members)

    def scale_problem(self, workers: int) -> str:
        """Why there cannot be so many workers; empty if there can."""
        rules = self.rules
        if not rules.starts:
            return "this job's workers are started by somebody else"
        if self.over or self.phase in ("publishing", "stopping"):
            return "the job is ending"
        if workers < rules.min_workers:
            return f"expected at least min_workers = {rules.min_workers}; got {workers}"
        if rules.streams and workers > rules.streams:
            return f"expected at most one worker a stream, streams = {rules.streams}; got {workers}"
        return ""

    # ---- the one way in ----------------------------------------------------------------------

    def step(self, event: Event) -> list[Effect]:
        """Takes in one event; returns what is to be done about it, in order."""
        if self.over:
            return self._after_the_end(event)
        if self.phase == "publishing" and isinstance(event, Failed | StopAsked):
            # The result is complete. Whoever interrupted its publication would leave half of it.
            return []
        match event:
            case Started():
                return self._start(event)
            case JoinCalled() if event.worker in self._lost:
                return [Dismiss(event.worker)]
            case HeartbeatCame() if event.worker in self._lost:
                return []
            case Failed() if event.worker in self._lost:
                return []
            case LeaseCalled() if event.worker in self._lost:
                # What it has done is done; it is to do nothing more.
                return [*self._take_in(event.done), Lease(event.worker, (), finished=True)]
            case JoinCalled():
                return self._join(event)
            case HeartbeatCame():
                return self._hear(event)
            case Ticked():
                return self._tick(event.now)
            case ConnectionMade():
                self._broken.pop(event.worker, None)
                return []
            case ConnectionBroke():
                if event.worker in self._alive:
                    self._broken[event.worker] = event.now
                return []
            case WorkerPends():
                return self._pend(event)
            case WorkerTaken():
                return self._say(f"{event.worker} is taken away ({event.reason}).")
            case WorkerGone():
                return self._gone(event)
            case LeaveCalled():
                return self._leave(event)
            case LeaseCalled():
                return self._lease(event)
            case ResultCame():
                if self.phase == "publishing" or not self.current(event.worker, event.generation):
                    return []
                self._become("publishing", "The result is being published.")
                return [Publish(event.result)]
            case Published():
                return self._end("succeeded", "All records are done.")
            case Failed():
                return self._fail(event)
            case NotPublished():
                return self._stop_failed(Failure(event.kind, event.message, event.trace))
            case ScaleAsked():
                return self._scale(event.workers)
            case StopAsked():
                return self._stop(event.reason)
            case _:
                assert_never(event)

    def _after_the_end(self, event: Event) -> list[Effect]:
        match event:
            case JoinCalled():
                return [Dismiss(event.worker)]
            case LeaseCalled():
                return [Lease(event.worker, (), finished=True)]
            case WorkerGone():
                self._alive.discard(event.worker)
        return []

    # ---- processes ---------------------------------------------------------------------------

    def _start(self, event: Started) -> list[Effect]:
        self._next_number = max(
            event.next_number, *(pods.number_of(w) + 1 for w in event.observed), 0
        )
        effects: list[Effect] = []
        if event.observed:
            self._alive.update(event.observed)
            self._unheard.update(event.observed)
            self._standby_due = len(event.observed) > self.workers
            count = len(event.observed)
            text = f"A new master takes over {count} worker{'s' if count > 1 else ''}."
            self._become("starting", text)
            effects.append(Note(text))
        return effects + self._converge()

    def _converge(self) -> list[Effect]:
        """Starts workers that are missing, and ends those that are too many and not at work."""
        if not self.rules.starts or self.phase in ("publishing", "stopping"):
            return []
        standby = self.rules.standby if self._standby_due else 0
        changes = pods.changes(
            self._alive - self._leaving,
            self.workers + standby,
            self._next_number,
            needed=self._needed(),
        )
        self._next_number += len(changes.start)
        self._alive.update(changes.start)
        delay = pods.delay_s(self._early_losses)
        effects: list[Effect] = [StartWorker(worker, delay) for worker in changes.start]
        for worker in changes.stop:
            self._leaving.add(worker)
            self._unheard.discard(worker)
            if self._waiting.pop(worker, None) is not None:
                effects.append(Dismiss(worker))
            else:
                effects.append(StopWorker(worker))
        return effects

    def _needed(self) -> frozenset[str]:
        """Workers that cannot just be told to end."""
        if self.rules.slices:
            return frozenset()
        # One that joins is about to become a member.
        room = max(0, self.workers - len(self.members))
        waiting = [w for w in sorted(self._waiting, key=pods.natural) if w not in self.members]
        return frozenset([*self.members, *waiting[:room], *self._unheard, *self._on_their_way()])

    def _pend(self, event: WorkerPends) -> list[Effect]:
        before = self._pending.get(event.worker, "")
        if event.worker not in self._alive or event.reason == before:
            return []
        if not event.reason:
            del self._pending[event.worker]
            return []
        self._pending[event.worker] = event.reason
        # There is nothing that it could report.
        self._unheard.discard(event.worker)
        others = sum(reason == event.reason for reason in self._pending.values()) - 1
        who = f"{event.worker} and {others} more are" if others else f"{event.worker} is"
        return [*self._say(f"{who} pending: {event.reason}."), *self._form()]

    def _gone(self, event: WorkerGone) -> list[Effect]:
        if event.worker not in self._alive:
            # What it said before its end may still come.
            self._lost.add(event.worker)
            return []
        if event.worker in self._leaving or self.phase == "publishing":
            return [*self._forget(event.worker), *self._form()]
        reported = any(failure.worker == event.worker for failure in self._failures)
        failure = Failure(
            event.kind, f"{event.worker} ended ({event.reason})", event.trace, event.worker
        )
        if not self.rules.starts:
            self._forget(event.worker)
            return self._stop_failed(failure)
        if event.crashed and not reported:
            self._failures.append(failure)
            verdict = failures.verdict(self._failures, self.rules.max_failures)
            if verdict.stop:
                self._forget(event.worker)
                return self._stop_failed(self._first_failure(verdict))
        return self._lose([event.worker], event.reason, costs_nothing=not event.crashed)

    def _is_early(self, worker: str) -> bool:
        seen = self._seen.get(worker)
        return worker not in self.members and (seen is None or seen.phase == "starting")

    def _leave(self, event: LeaveCalled) -> list[Effect]:
        if event.worker not in self._alive:
            return []
        if event.worker in self._leaving:
            return [*self._forget(event.worker), *self._form()]
        member = event.worker in self.members
        effects = self._forget(event.worker)
        at = f" at step {self.version}" if member and not self.rules.slices else ""
        text = f"{event.worker} leaves{at} ({event.reason})."
        self._become(self.phase, text)
        return [*effects, Note(text), *self._converge(), *self._form()]

    def _lose(
        self, workers: Iterable[str], reason: str, *, costs_nothing: bool = True
    ) -> list[Effect]:
        lost = [worker for worker in workers if worker in self._alive]
        self._early_losses += sum(self._is_early(worker) for worker in lost)
        self._lost_before += len(lost) if self.generation is None else 0
        effects: list[Effect] = []
        for worker in lost:
            effects += self._forget(worker)
        if not lost or self.phase == "publishing":
            return effects
        names = " and ".join(lost)
        verb = "is" if len(lost) == 1 else "are"
        counted = (
            "; that is no failure"
            if costs_nothing
            else f"; that was failure {len(self._failures)}, and max_failures = "
            f"{self.rules.max_failures}"
        )
        text = f"{names} {verb} lost ({reason}){counted}."
        self._become(self.phase, text)
        return [*effects, Note(text), *self._converge(), *self._form()]

    def _forget(self, worker: str) -> list[Effect]:
        """Does without this worker from now on."""
        unreported = worker in self._unheard
        self._missed = self._missed or unreported
        if self.generation is not None and (
            worker in self.members or (self._adopting and unreported)
        ):
            self._given_up = max(self._given_up, self.generation.number)
        self._alive.discard(worker)
        self._lost.add(worker)
        self._leaving.discard(worker)
        self._pending.pop(worker, None)
        self._unheard.discard(worker)
        self._seen.pop(worker, None)
        self._broken.pop(worker, None)
        self._costs.pop(worker, None)
        self._paces.pop(worker, None)
        self.leases.give_back(worker)
        return [Dismiss(worker)] if self._waiting.pop(worker, None) is not None else []

    def _scale(self, workers: int) -> list[Effect]:
        if workers == self.workers or self.scale_problem(workers):
            return []
        text = f"num_workers goes from {self.workers} to {workers}, as asked."
        self.workers = workers
        self._become(self.phase, text)
        return [Note(text), *self._converge(), *self._form()]

    # ---- signs of life -----------------------------------------------------------------------

    def _hear(self, event: HeartbeatCame) -> list[Effect]:
        self._meet(event.worker)
        before = self._seen.get(event.worker)
        if event.phase != "starting" and (before is None or before.phase == "starting"):
            self._early_losses = 0
        seen = _Seen(event.now, event.phase, event.version, event.generation, event.rank)
        self._seen[event.worker] = seen
        self._adopt(event)
        if self.current(event.worker, event.generation):
            seen.pace = event.pace
            self.version = max(self.version, event.version)
        return self._form()

    def _meet(self, worker: str, phase: str = "") -> None:
        """A worker has spoken, be it one that this master knew nothing of.

        What it calls for shows in which `phase` it is, before its next heartbeat says so; one that
        is starting is given more time to be silent.
        """
        seen = self._seen.get(worker)
        if phase and seen is not None and seen.phase in _BUSY:
            if seen.phase == "starting":
                self._early_losses = 0
            seen.phase = phase
        self._alive.add(worker)
        self._unheard.discard(worker)
        self._broken.pop(worker, None)
        self._next_number = max(self._next_number, pods.number_of(worker) + 1)

    def _adopt(self, event: HeartbeatCame) -> None:
        """Learns of a generation that an earlier master has formed."""
        known = self.generation
        if event.worker in self._waiting or (known is not None and not self._adopting):
            return
        known = self._learn(event.generation)
        if known is None or event.phase not in AT_WORK or event.generation < known.number:
            return
        if event.worker in known.members:
            return
        members = [*known.members, event.worker]
        members.sort(key=lambda worker: self._seen[worker].rank if worker in self._seen else -1)
        streams = {**known.streams, event.worker: event.streams}
        self.generation = dataclasses.replace(known, members=tuple(members), streams=streams)
        self._become("running", _at_work(len(members)))

    def _learn(self, number: int) -> membership.Generation | None:
        """The newest generation of which a new master knows, now that it has heard of this one.

        It counts even before one of its members is at work, and older ones do not any more.
        """
        known = self.generation
        adopting = self._adopting or known is None
        if adopting and number > (known.number if known is not None else 0):
            self._adopting = True
            self.generation = membership.Generation(number, (), term=self.rules.term)
            # Nor can one go on of which a member is gone.
            self._given_up = max(self._given_up, number - (not self._missed))
        return self.generation

    def _tick(self, now: float) -> list[Effect]:
        before, self._now = self._now, now
        pause = 0.0 if before is None else now - before
        for worker in self._alive:
            phase = "unheard" if worker in self._unheard else "starting"
            seen = self._seen.setdefault(worker, _Seen(now, phase))
            if pause > self.rules.grace_s / 2:
                # Nobody listened all the time, for example because this machine slept.
                seen.at = min(now, seen.at + pause - self.rules.grace_s / 2)
            if worker in self._pending:
                # Its time begins when it can start.
                seen.at = now
        effects = self._give_up_silent(now) + self._give_up_broken(now)
        if self.over:
            return effects
        self._give_up_stalled(now)
        if self.phase == "stopping":
            self._stop_by = now + _STOP_S if self._stop_by is None else self._stop_by
            if now > self._stop_by:
                return effects + self._end("cancelled", self._stop_reason)
        work = self.generation is not None and self.phase == "running"
        if work and not self._standby_due and self.rules.standby:
            self._standby_due = now - self._formed_at >= self.rules.standby_after_s
            effects += self._converge()
        return effects + self._compare(now)

    def _give_up_silent(self, now: float) -> list[Effect]:
        """Loses the workers that were not heard from, be it since they were started."""
        rules = self.rules
        by_grace: dict[float, dict[str, float]] = {}
        for worker, seen in self._seen.items():
            by_grace.setdefault(self._grace_s(seen.phase), {})[worker] = seen.at
        effects: list[Effect] = []
        for grace, last in sorted(by_grace.items()):
            silent = sorted(membership.silent(last, now, grace) & self._alive, key=pods.natural)
            knob = "grace_s = " if grace == rules.grace_s else ""
            reason = f"not heard from for more than {knob}{grace:g} s"
            effects += [KillWorker(worker, reason) for worker in silent]
            for worker in self._leaving.intersection(silent):
                effects += self._forget(worker)
            effects += self._lose(silent, reason)
        return effects

    def _give_up_broken(self, now: float) -> list[Effect]:
        """Loses the members that nobody is connected with any more: the connection for their
        orders broke, they were not heard from since, and others have left the generation, as they
        do when theirs with such a member breaks. Where processes are not this machine's, nothing
        says so earlier.
        """
        members = self.members
        if math.isinf(self.rules.grace_s) or not any(each in self._waiting for each in members):
            return []
        broken = [
            worker
            for worker in members
            if worker not in self._waiting
            and self._seen[worker].phase not in _BUSY
            and now - self._broken.get(worker, now) > min(_BROKEN_S, self.rules.grace_s)
        ]
        reason = "its connections broke, and it was not heard from since"
        return [*(KillWorker(each, reason) for each in broken), *self._lose(broken, reason)]

    def _grace_s(self, phase: str) -> float:
        if phase == "unheard":
            return _UNHEARD_GRACES * self.rules.grace_s
        return max(self.rules.start_grace_s if phase in _BUSY else 0.0, self.rules.grace_s)

    def _give_up_stalled(self, now: float) -> None:
        """A member that waits for the next generation has left this one for good; the others can
        finish nothing in it, and have had the time to see that themselves.
        """
        if self.generation is None:
            return
        members = self.members
        for worker, candidate in self._waiting.items():
            since = self._waiting_since.setdefault(worker, now)
            # Who was in an earlier master's generation may have left it before it could say so.
            left = worker in members or (self._adopting and candidate.generation > 0)
            if left and now - since > _STALL_S:
                self._given_up = max(self._given_up, self.generation.number)

    # ---- generations -------------------------------------------------------------------------

    def _regroups(self, worker: str) -> bool:
        """Whether a member is to ask its generation to regroup."""
        members = set(self.members)
        if worker not in members or worker in self._waiting:
            return False
        if self.phase == "stopping" or len(members) > self.workers:
            return True
        if self._agreed >= _PACES_AGREE:
            return True
        joining = any(candidate not in members for candidate in self._waiting)
        return joining and len(members) < self.workers

    def _join(self, event: JoinCalled) -> list[Effect]:
        last, earlier = self.generation, self._waiting.get(event.worker)
        if event.worker in self._leaving:
            return [Dismiss(event.worker)]
        if earlier is not None and event.generation < earlier.generation:
            # An older call, which comes late: nobody waits for its answer.
            return []
        if last is not None and self._was_not_told(event, last):
            return [Form(last)]
        self._meet(event.worker, "warm")
        self._waiting[event.worker] = membership.Candidate(
            event.worker, event.address, event.generation, event.progress
        )
        if self._now is not None:
            self._waiting_since[event.worker] = self._now
        if last is None or self._adopting:
            self._learn(event.generation)
        elif event.worker in last.members and event.generation < last.number:
            # It was never in this generation, which therefore cannot work.
            self._given_up = max(self._given_up, last.number)
        return self._form()

    def _was_not_told(self, event: JoinCalled, last: membership.Generation) -> bool:
        """Whether the generation that it asks for is there, and only the answer was lost."""
        return (
            event.worker in last.members
            and event.generation < last.number
            and self._given_up < last.number
            and not self._adopting
            and last.versions[event.worker] == (event.progress.version if event.progress else -1)
            and not any(member in self._waiting for member in last.members)
        )

    def _on_their_way(self) -> frozenset[str]:
        """Workers that an earlier master has left between two generations: they are about to
        call, and the replica that they have, or are just receiving, may be the newest.
        """
        if self.generation is not None and not self._adopting:
            return frozenset()
        told = {w for w, seen in self._seen.items() if seen.generation > 0 or seen.version >= 0}
        return frozenset(told & self._alive - self._leaving - self._waiting.keys())

    def _form(self) -> list[Effect]:
        """The next generation, once everybody who must be in it has called."""
        if self.phase == "publishing" or self._unheard or self._on_their_way():
            return []
        if any(member not in self._waiting for member in self.members):
            return []
        if self.phase == "stopping":
            return self._stop_together()
        if not self._waiting:
            return []
        chosen = self._chosen()
        needed = max(1, self.rules.min_workers)
        first = self.generation is None and not any(c.generation for c in self._waiting.values())
        if first:
            # It waits for all that were started together, but for none that takes the place of a
            # lost one, or that has no machine to start on.
            needed = max(needed, self.workers - self._lost_before - len(self._pending))
        if len(chosen) < needed:
            return [] if first else self._say(self._too_few(len(chosen)))
        last = self.generation
        known = max([last.number if last else 0, *(c.generation for c in self._waiting.values())])
        previous = last.streams if last else {}
        self.generation = membership.next_generation(
            known + 1,
            chosen,
            self.rules.streams,
            previous,
            term=self.rules.term,
            costs=self._costs,
            least_gain=self.rules.rebalance_gain,
        )
        self._given_up = max(self._given_up, known)
        self._adopting = False
        self.version = max(0, *self.generation.versions.values())
        effects: list[Effect] = []
        moved = self._moved(previous)
        if self._agreed >= _PACES_AGREE and moved:
            effects.append(Note(moved))
        for candidate in chosen:
            del self._waiting[candidate.worker]
            self._waiting_since.pop(candidate.worker, None)
            if candidate.worker in self._seen:
                self._seen[candidate.worker].pace = membership.NO_PACE
        self._restart_comparison()
        if self._now is not None and self.phase == "starting":
            self._formed_at = self._now
        if self.rules.standby and not self.rules.standby_after_s:
            self._standby_due = True
        self._become("running", _at_work(len(self.generation.members)))
        return [*effects, Form(self.generation), *self._converge()]

    def _too_few(self, there: int) -> str:
        return (
            f"{there} of min_workers = {self.rules.min_workers} workers "
            f"{'is' if there == 1 else 'are'} there; the job waits for more."
        )

    def _chosen(self) -> list[membership.Candidate]:
        """Those of the waiting that are to be in the next generation: first who has a replica."""
        members = self.members
        in_turn = sorted(
            self._waiting.values(),
            key=lambda c: (c.worker not in members, c.progress is None, pods.natural(c.worker)),
        )
        # A replica of the highest version must be among them.
        newest = max(in_turn, key=lambda c: c.progress.version if c.progress is not None else -1)
        in_turn.remove(newest)
        return [newest, *in_turn][: self.workers]

    # ---- stragglers --------------------------------------------------------------------------

    def _compare(self, now: float) -> list[Effect]:
        """Looks whether streams should move to faster members; a regroup moves them."""
        generation = self.generation
        if not self.rules.rebalance_gain or generation is None or self.phase != "running":
            return []
        members = self.members
        if len(members) < 2 or any(worker in self._waiting for worker in members):
            return []
        if now - self._compared_at < _PACE_S or self._agreed >= _PACES_AGREE:
            return []
        costs = {}
        for worker in members:
            seen, hosted = self._seen.get(worker), len(generation.streams.get(worker, ()))
            if seen is None or not hosted:
                return []
            pace = seen.pace.since(self._paces.get(worker, membership.NO_PACE))
            if pace.steps < _PACE_STEPS or pace.seconds <= 0:
                return []
            costs[worker] = pace.seconds / pace.steps / hosted
        self._compared_at = now
        self._paces = {worker: self._seen[worker].pace for worker in members}
        self._costs = costs
        present = {worker: len(generation.streams[worker]) for worker in members}
        placed = membership.placement(
            self.rules.streams, members, generation.streams, costs, self.rules.rebalance_gain
        )
        after = {worker: len(placed[worker]) for worker in members}
        better = membership.gain(present, after, costs) >= self.rules.rebalance_gain
        self._agreed = self._agreed + 1 if better else 0
        return []

    def _restart_comparison(self) -> None:
        self._agreed = 0
        self._paces = {}
        self._compared_at = self._now if self._now is not None else 0.0

    def _moved(self, previous: Mapping[str, tuple[int, ...]]) -> str:
        """What a comparison has come to, in a sentence; empty if nothing moves."""
        assert self.generation is not None
        fastest = min(self._costs.values(), default=1.0)
        changes = [
            f"{worker} ({self._costs.get(worker, fastest) / fastest:.1f} x the fastest's time a "
            f"stream) goes from {len(previous.get(worker, ()))} streams to {len(hosted)}"
            for worker, hosted in self.generation.streams.items()
            if len(previous.get(worker, ())) != len(hosted)
        ]
        if not changes:
            return ""
        return (
            f"Streams move to faster workers, as a step becomes shorter by rebalance_gain = "
            f"{self.rules.rebalance_gain:g} or more: {'; '.join(changes)}."
        )

    # ---- prediction --------------------------------------------------------------------------

    def _take_in(self, done: Sequence[int]) -> list[Effect]:
        for number in done:
            self.leases.finish(number)
        self.version = self.leases.done
        if self.leases.finished and self.phase != "publishing":
            self._become("publishing", "The result is being published.")
            return [Publish("")]
        return []

    def _lease(self, event: LeaseCalled) -> list[Effect]:
        self._meet(event.worker, "predicting")
        publish = self._take_in(event.done)
        if self.leases.finished or event.worker in self._leaving:
            return [Lease(event.worker, (), finished=True), *publish]
        at_work = {w for w, seen in self._seen.items() if seen.phase == "predicting"}
        at_work.add(event.worker)
        if len(at_work) < self.rules.min_workers:
            waits = self._say(self._too_few(len(at_work)))
            return [*waits, Lease(event.worker, (), finished=False)]
        self._become("running", "Slices are being predicted.")
        given = self.leases.lease(event.worker, event.most)
        return [Lease(event.worker, given, finished=False)]

    # ---- the end -----------------------------------------------------------------------------

    def _fail(self, event: Failed) -> list[Effect]:
        failure = Failure(event.kind, event.message, event.trace, event.worker, event.slices)
        final = event.kind == "user" or event.phase == "starting" or not self.rules.starts
        if not event.worker or final:
            return self._stop_failed(failure)
        if (event.worker, event.attempt) in self._attempts:
            return []
        self._attempts.add((event.worker, event.attempt))
        self._failures.append(failure)
        verdict = failures.verdict(self._failures, self.rules.max_failures)
        if verdict.stop:
            return self._stop_failed(self._first_failure(verdict))
        return self._say(verdict.reason)

    def _first_failure(self, verdict: failures.Verdict) -> Failure:
        """The first failure is what the job failed for; the verdict says what came after it."""
        first = self._failures[0]
        if not verdict.reason:
            return first
        message = f"{first.message.rstrip('.')}. {verdict.reason}"
        return dataclasses.replace(first, message=message)

    def _stop_failed(self, failure: Failure) -> list[Effect]:
        self.failure = failure
        return self._end("failed", failure.message)

    def _stop(self, reason: str) -> list[Effect]:
        if self.phase == "stopping":
            # Once more: whoever asks does not want to wait for a checkpoint.
            return self._end("cancelled", reason)
        replicas = any(c.progress is not None for c in self._waiting.values())
        others = self.members or self._unheard or self._on_their_way()
        if not self.rules.checkpoints or not (replicas or others):
            return self._end("cancelled", reason)
        self._stop_reason = reason
        self._stop_by = None if self._now is None else self._now + _STOP_S
        self._become("stopping", f"{reason} A last checkpoint is being written.")
        return self._form()

    def _stop_together(self) -> list[Effect]:
        """All members wait: the one with the highest version writes a last checkpoint."""
        with_replica = [c for c in self._waiting.values() if c.progress is not None]
        if self._saver in self._alive and self._saver not in self._waiting:
            return []
        if self._saver in self._waiting or not with_replica:
            return self._end("cancelled", self._stop_reason)
        best = min(
            with_replica,
            key=lambda c: (-c.progress.version if c.progress else 0, *pods.natural(c.worker)),
        )
        self._saver = best.worker
        del self._waiting[best.worker]
        return [Save(best.worker)]

    def _end(self, phase: str, reason: str) -> list[Effect]:
        self._become(phase, reason)
        waiting, self._waiting = sorted(self._waiting, key=pods.natural), {}
        return [*(Dismiss(worker) for worker in waiting), End()]

    def _say(self, text: str) -> list[Effect]:
        """The decision, unless it is the last one again."""
        if self.reason == text:
            return []
        self._become(self.phase, text)
        return [Note(text)]

    def _become(self, phase: str, reason: str) -> None:
        self.phase, self.reason = phase, reason


def _at_work(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''} at work."
