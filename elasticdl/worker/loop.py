"""Step, commit, regroup: the life of a training worker; knows no Keras."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elasticdl.config import JobConfig
from elasticdl.core import member, membership, progress, streams
from elasticdl.core.progress import Progress
from elasticdl.data import pipeline, stream
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages
from elasticdl.worker import heartbeat

if TYPE_CHECKING:
    from elasticdl.worker import replica


_PLACES_SHOWN = 3  # of slices that a bad loss came from


class GivenUp(Exception):
    """The generation is no more; its step or evaluation is to be done again in the next one."""


@dataclass(frozen=True)
class DataSet:
    """One data set as a member walks through it."""

    plan: streams.Plan
    opener: pipeline.Opener


class Members(Protocol):
    """The members of one generation together (see `members`)."""

    alone: bool
    computed_s: float

    def step(
        self, batch: pipeline.Batch, at: progress.Progress, regroup: bool
    ) -> tuple["replica.Outcome", progress.Tail]:
        """One committed step of all members; raises `GivenUp` where there was none."""

    def total(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all members; raises `GivenUp`."""


@dataclass
class _Window:
    """Steps that one line of history sums up."""

    elements: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    metrics: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, outcome: "replica.Outcome") -> None:
        self.steps += 1
        if not outcome.applied:
            # One loss that is not a number would make that of all these steps none.
            return
        self.elements += outcome.elements
        self.loss_sum += outcome.loss_sum
        for name, states in outcome.metrics.items():
            known = self.metrics.get(name)
            self.metrics[name] = (
                [a + b for a, b in zip(known, states, strict=True)] if known else list(states)
            )


@dataclass(frozen=True)
class Position:
    """What a replica holds: where it stands, and what came before.

    Args:
        epoch_version: the version at which the present epoch began.
        elements, epoch_elements: that were trained on, in all and in the present epoch.
    """

    progress: Progress
    epoch_version: int = 0
    elements: int = 0
    epoch_elements: int = 0

    def advanced(self, after: Progress, outcome: "replica.Outcome") -> "Position":
        """The position after one more step."""
        elements = self.elements + outcome.elements
        if after.epoch > self.progress.epoch:
            return Position(after, after.version, elements, 0)
        epoch_elements = self.epoch_elements + outcome.elements
        return Position(after, self.epoch_version, elements, epoch_elements)


class Saver(Protocol):
    """Writes checkpoints (see `work`)."""

    def committed(self, position: Position, *, speaks: bool) -> None:
        """The replica stands here now; the member that `speaks` writes what is due. Returns at
        once.
        """


class Training:
    """Trains until progress says that the job is done.

    Args:
        replica: prepared for training and, if there is `eval_data`, for evaluation.
        pool: threads that read ahead.
        saver: writes checkpoints in the background.

    Attributes:
        position: where the replica stands; as the replica, the same in all members.
        metrics: of the last evaluation.
    """

    def __init__(
        self,
        config: JobConfig,
        replica: "replica.Replica",
        data: DataSet,
        eval_data: DataSet | None,
        beat: heartbeat.Heartbeat,
        pool: ThreadPoolExecutor,
        saver: Saver,
    ) -> None:
        self.config = config
        self.replica = replica
        self.data = data
        self.eval_data = eval_data
        self.beat = beat
        self.pool = pool
        self.saver = saver
        plan = data.plan
        self.position = Position(
            progress.beginning(
                [plan.slice_of(0, s, 0) is None for s in range(plan.streams)], config.epochs
            )
        )
        self.metrics: dict[str, Any] = {}
        self._evaluated = -1
        self._window = _Window()
        self._pace = membership.NO_PACE
        self._streams = stream.Streams(
            data.plan,
            data.opener,
            pool,
            epochs=config.epochs,
            share=math.ceil(config.batch_size / config.streams),
        )

    @property
    def progress(self) -> Progress:
        return self.position.progress

    @property
    def finished(self) -> bool:
        return self.progress.finished(self.config.epochs, self.config.max_steps)

    def run(self, generation: membership.Generation, rank: int, members: Members) -> None:
        """Trains in this generation; returns when all is trained and evaluated.

        Raises:
            GivenUp: before that, the generation came to its end.
        """
        hosted = generation.streams[generation.members[rank]]
        self._streams.host({number: self.progress.cursors[number] for number in hosted})
        speaks = rank == 0
        self._pace = membership.NO_PACE
        # What one member has evaluated already, another may not have: all do it again.
        self._evaluated = -1
        self.beat.stands(self.progress)
        self.beat.phase("member")
        while True:
            if self._evaluation_due():
                self._evaluate(hosted, members, speaks)
            if self.finished:
                # Nobody waits any more for what is being read ahead, and holds a thread for it.
                self._streams.host({})
                return
            if self.beat.stop:
                raise Cancelled("the job was stopped")
            regroups = self._step(members, speaks)
            self.beat.stands(self.progress)
            self.saver.committed(self.position, speaks=speaks)
            if regroups:
                raise GivenUp("the members regroup")

    def rehearse(self, hosted: Sequence[int]) -> None:
        """Makes everything ready that a first step would wait for; nothing is trained.

        Args:
            hosted: streams that are likely to be this member's; they stay open.
        """
        self._streams.host({number: self.progress.cursors[number] for number in hosted})
        # What fails here fails again when it is trained on, and is told with its place.
        with contextlib.suppress(UserError):
            self._streams.take(0, progress.shares(self.progress, self.config.batch_size))
        members = {max(1, self.config.num_workers - lost) for lost in (0, 1)}
        streams = self.config.streams
        self.replica.rehearse({-(-streams // n) for n in members} | {streams // n for n in members})

    def close(self) -> None:
        self._streams.close()

    def _step(self, members: Members, speaks: bool) -> bool:
        """One committed step; whether all members are to regroup after it."""
        before = self.progress
        shares = progress.shares(before, self.config.batch_size)
        batch = self._streams.take(before.epoch, shares)
        # Where the streams of others will stand is a guess, and wrong only near an epoch's end.
        likely = progress.advanced(before, batch.used)
        if not likely.finished(self.config.epochs, self.config.max_steps):
            self._streams.expect(likely.epoch, progress.shares(likely, self.config.batch_size))
        flag = self.beat.regroup or bool(self.beat.leaving) or self.beat.orphaned
        computed_s = members.computed_s
        try:
            outcome, tail = members.step(batch, before, flag)
        except UserCodeError as error:
            error.slices = error.slices or tuple(
                self.data.opener.where(each) for some in batch.slices.values() for each in some
            )
            raise
        if outcome.elements and not math.isfinite(outcome.loss_sum):
            self._bad_loss(batch, outcome, members, speaks)
        self._streams.commit()
        self.position = self.position.advanced(progress.advanced(before, tail.used), outcome)
        self._measure(members.computed_s - computed_s, batch.elements)
        self._window.add(outcome)
        due = self.progress.version % self.config.log_every_steps == 0
        if due or self.finished or self.progress.epoch > before.epoch:
            self._report(speaks)
        then = member.after_step(tail, self.progress, self.config.epochs, self.config.max_steps)
        return then is member.After.REGROUP

    def _measure(self, seconds: float, elements: int) -> None:
        pace = self._pace
        self._pace = membership.Pace(
            pace.seconds + seconds, pace.elements + elements, pace.steps + 1
        )
        self.beat.paced(self._pace)

    def _report(self, speaks: bool) -> None:
        window, self._window = self._window, _Window()
        report = pb.StepReport(
            version=self.progress.version,
            elements=window.elements,
            loss_sum=window.loss_sum,
            steps=window.steps,
            metrics=messages.metric_messages(self.replica.training_metrics(window.metrics)),
            time=time.time(),
            total_elements=self.position.elements,
            epoch_elements=self.position.epoch_elements,
        )
        self.beat.committed(report, self.replica.learning_rate(), speaks=speaks)

    def _bad_loss(
        self,
        batch: pipeline.Batch,
        outcome: "replica.Outcome",
        members: Members,
        speaks: bool,
    ) -> None:
        """Stops, or, with --nan_loss=skip, says so and goes on; nothing was applied."""
        losses = self.replica.losses_by_stream(batch, self.progress.version)
        bad = [stream for stream, loss in losses.items() if not math.isfinite(loss)]
        places = [self.data.opener.where(s) for stream in bad for s in batch.slices[stream]]
        where = "; ".join(places[:_PLACES_SHOWN])
        if len(places) > _PLACES_SHOWN:
            where += f" and {len(places) - _PLACES_SHOWN} more slices"
        mean = outcome.loss_sum / outcome.elements
        text = f"loss: expected a finite number; got {mean} at step {self.progress.version + 1}"
        if where:
            text += f", from {where}"
        known = members.total(np.asarray([float(len(bad))]))[0] > 0
        says = bool(bad) or (speaks and not known)
        if self.config.nan_loss == "skip":
            if says:
                self.beat.notice(f"{text}. The step was skipped.")
            return
        if not says:
            raise Cancelled("another member says where the loss that is not finite came from")
        raise UserError(
            f"{text}. Look at these records, lower the learning rate or clip gradients; "
            "--nan_loss=skip leaves such steps out."
        )

    def _evaluation_due(self) -> bool:
        if self.eval_data is None or self._evaluated == self.progress.version:
            return False
        if self.finished:
            return True
        if self.progress.version == 0:
            return False
        every = self.config.eval_every_steps
        if every:
            return self.progress.version % every == 0
        return self.progress.version == self.position.epoch_version

    def _evaluate(self, hosted: tuple[int, ...], members: Members, speaks: bool) -> None:
        assert self.eval_data is not None
        self.beat.phase("evaluating")
        sums, elements = evaluation(
            self.config,
            self.replica,
            self.eval_data,
            hosted,
            members,
            self.pool,
            interrupted=self.beat.interrupts_evaluation,
        )
        self.metrics = self.replica.evaluation_metrics(sums, elements)
        self._evaluated = self.progress.version
        if speaks:
            self.beat.evaluated(self.progress.version, elements, self.metrics)
        self.beat.phase("member")


def evaluation(
    config: JobConfig,
    replica: "replica.Replica",
    data: DataSet,
    hosted: tuple[int, ...],
    members: Members,
    pool: ThreadPoolExecutor,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[NDArray[np.float64], int]:
    """The metric states of the whole evaluation set and its number of elements.

    Each stream is walked in batches of its own, so that what a batch holds does not depend on who
    computes it.

    Args:
        interrupted: whether to give it up, so that another generation can begin it again.

    Raises:
        GivenUp, UserError, UserCodeError
    """
    sums = np.zeros(replica.evaluation_length)
    elements = 0
    share = min(config.batch_size, 1024)
    # All of them read ahead while the first ones are evaluated.
    walks = {}
    for number in hosted:
        walks[number] = stream.Streams(
            data.plan, data.opener, pool, epochs=1, share=math.ceil(share / 4)
        )
        walks[number].host({number: progress.Cursor()})
    try:
        for number, walk in walks.items():
            while (batch := walk.take(0, {number: share})).elements:
                if interrupted():
                    raise GivenUp("the evaluation is begun again")
                sums += replica.evaluation_sums(batch)
                elements += batch.elements
    finally:
        for walk in walks.values():
            walk.close()
    total = members.total(np.append(sums, float(elements)))
    if not total[-1]:
        raise UserError(
            "create_dataset: expected elements to evaluate; got none from all records. Look at "
            "its filters in mode EVALUATION."
        )
    return total[:-1], int(total[-1])
