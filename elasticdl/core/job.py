"""Job.step(event) → [effect]: the only way that a job's state changes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from elasticdl.core import leases, membership, pods
from elasticdl.core.progress import Progress

# ---- events: what happened ---------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The job begins; nothing runs yet."""


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
    """A worker is alive at `now` (seconds of any clock that only rises)."""

    worker: str
    now: float
    version: int


@dataclass(frozen=True)
class Ticked:
    """Time went by."""

    now: float


@dataclass(frozen=True)
class WorkerGone:
    """A worker's process has ended; `trace` is the end of what it printed."""

    worker: str
    reason: str
    trace: str = ""


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
    """Something that ends the job: `kind` is user, user_code or bug (who must act); `worker` is who
    says so, if it is one.
    """

    kind: str
    message: str
    trace: str = ""
    worker: str = ""


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants the job to stop."""

    reason: str


Event = (
    Started
    | JoinCalled
    | HeartbeatCame
    | Ticked
    | WorkerGone
    | LeaseCalled
    | ResultCame
    | Published
    | NotPublished
    | Failed
    | StopAsked
)

# ---- effects: what is to be done ---------------------------------------------------------------


@dataclass(frozen=True)
class StartWorker:
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
class End:
    """The job is over; workers that still run are to stop."""


Effect = StartWorker | KillWorker | Form | Dismiss | Lease | Publish | End


@dataclass(frozen=True)
class Failure:
    """Why a job failed; see `Failed`."""

    kind: str
    message: str
    trace: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a job is and what it puts up with.

    Args:
        workers: how many workers there should be; 0: they are started by somebody else.
        expected: how many candidates the first generation waits for.
        streams: number of streams; 0 for a prediction, which has no generations.
        slices: number of slices to lease; 0 for all but a prediction.
        done: slices that need not be leased.
        grace_s: a worker not heard from for longer is given up.
        losses_in_a_row: workers that may be lost without a step between them.
    """

    workers: int
    expected: int
    streams: int = 0
    slices: int = 0
    done: tuple[int, ...] = ()
    grace_s: float = 30.0
    losses_in_a_row: int = 3


@dataclass
class Job:
    """The state of one job.

    `phase` is starting, running, publishing, succeeded, failed or cancelled; `reason` says in one
    sentence why. `version` is the highest that was heard of; in a prediction, the slices done.
    """

    rules: Rules
    phase: str = "starting"
    reason: str = "Workers are starting."
    failure: Failure | None = None
    generation: membership.Generation | None = None
    version: int = 0
    _alive: set[str] = field(default_factory=set)
    _lost: set[str] = field(default_factory=set)
    _seen: dict[str, float] = field(default_factory=dict)
    _ticked: float | None = None
    _waiting: dict[str, membership.Candidate] = field(default_factory=dict)
    _next_number: int = 0
    _losses: int = 0
    _losses_version: int = 0

    def __post_init__(self) -> None:
        self.leases = leases.Leases(self.rules.slices, self.rules.done)

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

    def regroup(self, worker: str) -> bool:
        """Whether this worker is to ask its generation to regroup: somebody waits to join."""
        members = set(self.members)
        if worker not in members or worker in self._waiting:
            return False
        return any(candidate not in members for candidate in self._waiting)

    def current(self, worker: str, generation: int) -> bool:
        """Whether this worker speaks for the current generation; no other's result counts."""
        return (
            self.generation is not None
            and self.generation.number == generation
            and worker in self.members
        )

    def step(self, event: Event) -> list[Effect]:
        """Takes in one event; returns what is to be done about it, in order."""
        if self.over:
            return self._after_the_end(event)
        if self.phase == "publishing" and isinstance(event, Failed | StopAsked):
            # The result is complete. Whoever interrupted its publication would leave half of it.
            return []
        match event:
            case Started():
                return self._start_missing()
            case JoinCalled() if event.worker in self._lost:
                return [Dismiss(event.worker)]
            case HeartbeatCame() if event.worker in self._lost:
                return []
            case Failed() if event.worker in self._lost:
                return []
            case LeaseCalled() if event.worker in self._lost:
                return [Lease(event.worker, (), finished=True)]
            case JoinCalled():
                return self._join(event)
            case HeartbeatCame():
                self._alive.add(event.worker)
                self._seen[event.worker] = event.now
                self.version = max(self.version, event.version)
                return []
            case Ticked():
                return self._give_up_silent(event.now)
            case WorkerGone():
                return self._lose([event.worker], event.reason, event.trace)
            case LeaseCalled():
                return self._lease(event)
            case ResultCame():
                if self.phase == "publishing" or not self.current(event.worker, event.generation):
                    return []
                self._become("publishing", "The result is being published.")
                return [Publish(event.result)]
            case Published():
                return self._end("succeeded", "All records are done.")
            case Failed() | NotPublished():
                return self._fail(event.kind, event.message, event.trace)
            case StopAsked():
                return self._end("cancelled", event.reason)
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

    def _start_missing(self) -> list[Effect]:
        if not self.rules.workers:
            return []
        wanted = pods.changes(self._alive, self.rules.workers, self._next_number)
        self._next_number += len(wanted.start)
        self._alive.update(wanted.start)
        return [StartWorker(worker) for worker in wanted.start]

    def _join(self, event: JoinCalled) -> list[Effect]:
        last = self.generation
        if (
            last is not None
            and event.worker in last.members
            and event.generation < last.number
            and not any(member in self._waiting for member in last.members)
        ):
            # Its generation was formed, but the answer did not reach it.
            return [Form(last)]
        self._alive.add(event.worker)
        self._waiting[event.worker] = membership.Candidate(
            event.worker, event.address, event.generation, event.progress
        )
        return self._form()

    def _form(self) -> list[Effect]:
        """The next generation, once everybody who must be in it has called."""
        if self.phase == "publishing":
            return []
        if any(member not in self._waiting for member in self.members):
            return []
        if self.generation is None and len(self._waiting) < self.rules.expected:
            return []
        if not self._waiting:
            return []
        last = self.generation
        self.generation = membership.next_generation(
            (last.number if last else 0) + 1,
            tuple(self._waiting.values()),
            self.rules.streams,
            last.streams if last else {},
        )
        self._waiting.clear()
        count = len(self.generation.members)
        self._become("running", f"{count} worker{'s' if count > 1 else ''} at work.")
        return [Form(self.generation)]

    def _give_up_silent(self, now: float) -> list[Effect]:
        """Loses the workers that were not heard from, be it since they were started."""
        pause = 0.0 if self._ticked is None else now - self._ticked
        self._ticked = now
        for worker in self._alive:
            self._seen.setdefault(worker, now)
            if pause > self.rules.grace_s / 2:
                # Nobody listened in that time, for example because this machine slept.
                self._seen[worker] = now
        silent = sorted(membership.silent(self._seen, now, self.rules.grace_s))
        reason = f"not heard from for more than grace_s = {self.rules.grace_s:g} s"
        kills: list[Effect] = [KillWorker(worker, reason) for worker in silent]
        return kills + self._lose(silent, reason)

    def _lose(self, workers: Iterable[str], reason: str, trace: str = "") -> list[Effect]:
        effects: list[Effect] = []
        lost = [worker for worker in workers if worker in self._alive]
        for worker in lost:
            self._alive.discard(worker)
            # Names are not used again: one that is given up and wakes can do nothing but end.
            self._lost.add(worker)
            self._seen.pop(worker, None)
            if self._waiting.pop(worker, None) is not None:
                effects.append(Dismiss(worker))
            self.leases.give_back(worker)
            self._losses = self._losses + 1 if self.version == self._losses_version else 1
            self._losses_version = self.version
        if not lost or self.phase == "publishing":
            return effects
        names = " and ".join(lost)
        if self._losses > self.rules.losses_in_a_row or not self.rules.workers:
            count = f", the {_ordinal(self._losses)} loss without a step in between"
            return effects + self._fail(
                "bug", f"{names} ended ({reason}){count if self._losses > 1 else ''}.", trace
            )
        others = "another one is" if len(lost) == 1 else "others are"
        verb = "is" if len(lost) == 1 else "are"
        self._become(self.phase, f"{names} {verb} lost ({reason}); {others} being started.")
        return [*effects, *self._start_missing(), *self._form()]

    def _lease(self, event: LeaseCalled) -> list[Effect]:
        self._alive.add(event.worker)
        for number in event.done:
            if self.leases.finish(event.worker, number):
                self.version += 1
        if self.leases.finished:
            answer = Lease(event.worker, (), finished=True)
            if self.phase == "publishing":
                return [answer]
            self._become("publishing", "The result is being published.")
            return [answer, Publish("")]
        self._become("running", "Slices are being predicted.")
        given = self.leases.lease(event.worker, event.most)
        return [Lease(event.worker, given, finished=False)]

    def _fail(self, kind: str, message: str, trace: str) -> list[Effect]:
        self.failure = Failure(kind, message, trace)
        return self._end("failed", message)

    def _end(self, phase: str, reason: str) -> list[Effect]:
        self._become(phase, reason)
        waiting, self._waiting = sorted(self._waiting), {}
        return [*(Dismiss(worker) for worker in waiting), End()]

    def _become(self, phase: str, reason: str) -> None:
        self.phase, self.reason = phase, reason


def _ordinal(number: int) -> str:
    last = number % 10 if number // 10 % 10 != 1 else 0  # 11th, not 11st
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
