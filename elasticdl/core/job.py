"""Job.step(event) → [effect]: the only way that a job's state changes."""

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
    """A worker waits for the next generation; `progress` None: it has no replica."""

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
    """A worker's process has ended."""

    worker: str
    reason: str


@dataclass(frozen=True)
class LeaseCalled:
    """A predicting worker has published the parts of `done` and asks for `most` slices."""

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
class Failed:
    """Something that ends the job: `kind` is user, user_code or bug (who must act)."""

    kind: str
    message: str
    trace: str = ""


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
    """Answers all waiting members: this is their generation."""

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
    """Moves the result into the output; `result` is what ResultCame said, or empty."""

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
    """The state of one job. `phase` is starting, running, publishing, succeeded, failed or
    cancelled; `reason` says in one sentence why.
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
        members = self.members
        if worker not in members or worker in self._waiting:
            return False
        return any(candidate not in members for candidate in self._waiting)

    def step(self, event: Event) -> list[Effect]:
        """Takes in one event; returns what is to be done about it, in order."""
        if self.over:
            return self._after_the_end(event)
        match event:
            case Started():
                return self._start_missing()
            case JoinCalled() if event.worker in self._lost:
                return [Dismiss(event.worker)]
            case HeartbeatCame() if event.worker in self._lost:
                return []
            case LeaseCalled() if event.worker in self._lost:
                return [Lease(event.worker, (), finished=True)]
            case JoinCalled():
                self._alive.add(event.worker)
                self._waiting[event.worker] = membership.Candidate(
                    event.worker, event.address, event.generation, event.progress
                )
                return self._form()
            case HeartbeatCame():
                self._alive.add(event.worker)
                self._seen[event.worker] = event.now
                self.version = max(self.version, event.version)
                return []
            case Ticked():
                return self._give_up_silent(event.now)
            case WorkerGone():
                return self._lose(event.worker, event.reason)
            case LeaseCalled():
                return self._lease(event)
            case ResultCame():
                if self.generation is None or event.generation != self.generation.number:
                    return []
                self._become("publishing", "The result is being published.")
                return [Publish(event.result)]
            case Published():
                return self._end("succeeded", "All records are done.")
            case Failed():
                self.failure = Failure(event.kind, event.message, event.trace)
                return self._end("failed", event.message)
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
        effects: list[Effect] = []
        for worker in sorted(membership.silent(self._seen, now, self.rules.grace_s)):
            reason = f"not heard from for more than grace_s = {self.rules.grace_s:g} s"
            effects += [KillWorker(worker, reason), *self._lose(worker, reason)]
        return effects

    def _lose(self, worker: str, reason: str) -> list[Effect]:
        if worker not in self._alive:
            return []
        self._alive.discard(worker)
        # Names are not used again: one that is given up and wakes can do nothing but end.
        self._lost.add(worker)
        self._seen.pop(worker, None)
        self._waiting.pop(worker, None)
        self.leases.give_back(worker)
        self._losses = self._losses + 1 if self.version == self._losses_version else 1
        self._losses_version = self.version
        if self.phase == "publishing":
            return []
        if self._losses > self.rules.losses_in_a_row or not self.rules.workers:
            self.failure = Failure(
                "bug",
                f"{worker} ended ({reason}), the {_ordinal(self._losses)} loss without a step "
                "in between.",
                "",
            )
            return self._end("failed", self.failure.message)
        self._become(self.phase, f"{worker} is lost ({reason}); another one is being started.")
        return [*self._start_missing(), *self._form()]

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

    def _end(self, phase: str, reason: str) -> list[Effect]:
        self._become(phase, reason)
        waiting, self._waiting = sorted(self._waiting), {}
        return [*(Dismiss(worker) for worker in waiting), End()]

    def _become(self, phase: str, reason: str) -> None:
        self.phase, self.reason = phase, reason


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"
