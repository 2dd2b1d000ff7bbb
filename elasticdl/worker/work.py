"""What a member does in each generation, and the result that the job's last one leaves."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elasticdl import config as configs
from elasticdl.config import JobConfig
from elasticdl.core import member, membership
from elasticdl.core.progress import Progress
from elasticdl.data import outputs
from elasticdl.errors import UserError
from elasticdl.model import artifact
from elasticdl.model import source as sources
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc
from elasticdl.worker import checkpoint, heartbeat, loop, replica

if TYPE_CHECKING:
    from elasticdl.worker import group as groups


@dataclass(frozen=True)
class Worker:
    """A registered worker and what it works with.

    Args:
        client: calls the master.
        beat: reports to the master.
        pool: threads that read ahead.
        directory: where results stand until the master publishes them.
        checkpoints: where checkpoints stand.
    """

    name: str
    config: JobConfig
    client: rpc.Client
    beat: heartbeat.Heartbeat
    pool: ThreadPoolExecutor
    directory: Path
    checkpoints: Path


class Work(Protocol):
    """A member's part of a job that is done in generations."""

    @property
    def progress(self) -> Progress | None:
        """Where the replica stands; None: there is none yet, or none is needed."""

    def rehearse(self) -> None:
        """Makes ready what the first step would wait for, and the other members with it."""

    def begin(self) -> None:
        """Makes the first replica, where no worker has one."""

    def receive(self, generation: membership.Generation, rank: int, group: "groups.Group") -> None:
        """Gives those members that are behind the source's replica, whole; raises `group.Broken`
        where that failed, and then every replica is as it was.
        """

    def save(self) -> None:
        """Writes a checkpoint now, unless there is one as new, or nothing to write."""

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        """Works with the others until all is done; raises `loop.GivenUp` where it is not."""

    def finish(self, generation: membership.Generation) -> None:
        """Hands the result to the master."""


class Saver:
    """Checkpoints of one worker's replica, when they are due and it speaks for its generation.

    Args:
        clock: in seconds.
    """

    def __init__(
        self,
        worker: Worker,
        copy: replica.Replica,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._replica = copy
        self._every = worker.config.checkpoints
        self._directory = worker.checkpoints
        self._writer = checkpoint.Writer(worker.checkpoints, worker.config.keep_checkpoints)
        self._term = self._generation = 0
        self._version = 0
        self._at = clock()
        self._reported: tuple[object, str] = (None, "")

    def joined(self, generation: membership.Generation, version: int) -> None:
        """From now on checkpoints are of this generation."""
        if not self._generation:
            # Who has just come begins to count here. Later generations change nothing: were each
            # to begin anew, no checkpoint would be due where they follow each other fast.
            self._version, self._at = version, self._clock()
        self._term, self._generation = generation.term, generation.number

    def committed(self, position: loop.Position, *, speaks: bool) -> None:
        """The replica stands here now: if a checkpoint is due, the member that speaks begins it.

        The others count with it, so that whoever speaks next knows when the next one is due.
        """
        now, version = self._clock(), position.progress.version
        if checkpoint.due(self._every, version, now, self._version, self._at):
            self._version, self._at = version, now
            if speaks:
                self._writer.begin(self._replica.snapshot(), self._meta(position))
        self._report()

    def save(self, position: loop.Position) -> None:
        """Writes one now, unless there is one of this version or a later one."""
        if self._every == configs.Every() or not position.progress.version:
            return
        if self._is_there(position.progress.version):
            return
        self._writer.save_now(self._replica.snapshot(), self._meta(position))
        self._report()

    def _is_there(self, version: int) -> bool:
        # One of an earlier master may be one that was passed over as damaged.
        with contextlib.suppress(OSError):
            return any(
                each.number.term >= self._term and each.number.version >= version
                for each in checkpoint.listed(self._directory)
            )
        return False

    def _meta(self, position: loop.Position) -> checkpoint.Meta:
        config = self._worker.config
        return checkpoint.Meta(
            term=self._term,
            generation=self._generation,
            progress=position.progress,
            epoch_version=position.epoch_version,
            elements=position.elements,
            epoch_elements=position.epoch_elements,
            fingerprint={"model_def": config.model_def, "params": config.params},
        )

    def _report(self) -> None:
        last, problem = self._writer.last, self._writer.problem
        if (last, problem) == self._reported:
            return
        self._reported = (last, problem)
        report = pb.CheckpointReport(problem=problem)
        if last is not None:
            report.version, report.bytes, report.seconds = last.version, last.bytes, last.seconds
        self._worker.beat.checkpointed(report)


class Trainer:
    """A member's part of a training."""

    def __init__(
        self,
        worker: Worker,
        copy: replica.Replica,
        data: loop.DataSet,
        eval_data: loop.DataSet | None,
        sample: replica.Sample,
        source: sources.ModelSource,
    ) -> None:
        self._worker = worker
        self._replica = copy
        self._sample = sample
        self._source = source
        self._saver = Saver(worker, copy)
        self._training = loop.Training(
            worker.config, copy, data, eval_data, worker.beat, worker.pool, self._saver
        )
        self._has_replica = False

    @property
    def progress(self) -> Progress | None:
        return self._training.progress if self._has_replica else None

    def rehearse(self) -> None:
        config = self._worker.config
        first = [f"worker-{number}" for number in range(config.num_workers)]
        placed = membership.placement(config.streams, first, {})
        self._training.rehearse(placed.get(self._worker.name, placed[first[0]]))

    def begin(self) -> None:
        try:
            found = checkpoint.newest(self._worker.checkpoints)
        except OSError as error:
            # There may be some: to begin anew would be to forget what they have.
            raise UserError(
                f"checkpoint: {self._worker.checkpoints} cannot be read: "
                f"{error.strerror or error}. Make it readable, or use --restart."
            ) from error
        for damaged in found.passed_over:
            self._worker.beat.notice(f"A checkpoint is passed over: {damaged}.")
        if found.loaded is not None:
            checkpoint.restore(self._replica, found.loaded)
            meta = found.loaded.meta
            self._training.position = loop.Position(
                meta.progress, meta.epoch_version, meta.elements, meta.epoch_elements
            )
            self._worker.beat.notice(
                f"The training goes on from the checkpoint of step {meta.progress.version:,}."
            )
        elif self._worker.config.from_checkpoint:
            self._warm(self._worker.config.from_checkpoint)
        self._has_replica = True

    def _warm(self, where: str) -> None:
        """Takes over another training's weights: those of a checkpoint, or of a trained model."""
        loaded = checkpoint.found_at(where)
        if loaded is not None:
            checkpoint.warm_start(self._replica, loaded)
        else:
            artifact.restore(self._replica.definition, where)
        self._worker.beat.notice(
            f"The training begins with the weights of {loaded.path if loaded else where}."
        )

    def receive(self, generation: membership.Generation, rank: int, group: "groups.Group") -> None:
        import torch

        mine, position = rank == generation.source, self._training.position
        head = json.dumps(
            [
                position.epoch_version,
                position.elements,
                position.epoch_elements,
                base64.b64encode(
                    messages.progress_message(position.progress).SerializeToString()
                ).decode(),
            ]
        )
        head = group.broadcast(head.encode() if mine else None, generation.source).decode()
        state = np.empty(self._replica.state_bytes, np.uint8)
        if mine:
            self._replica.dump_into(state)
        group.broadcast_into(torch.from_numpy(state), generation.source)
        if member.begin(generation, rank) is member.Begin.RECEIVE:
            epoch_version, elements, epoch_elements, at = json.loads(head)
            progress = messages.progress_value(pb.Progress.FromString(base64.b64decode(at)))
            self._replica.restore(state)
            self._training.position = loop.Position(
                progress, epoch_version, elements, epoch_elements
            )
            self._has_replica = True

    def save(self) -> None:
        if self._has_replica:
            self._saver.save(self._training.position)

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        self._saver.joined(generation, self._training.progress.version)
        self._training.run(generation, rank, together)

    def finish(self, generation: membership.Generation) -> None:
        worker, training = self._worker, self._training
        worker.beat.phase("exporting")
        worker.beat.flush()
        directory = worker.directory / f"generation-{generation.term}-{generation.number}"
        with outputs.writing(worker.config.output):
            directory.mkdir()
            artifact.write(
                directory,
                definition=self._replica.definition,
                source=self._source,
                config=worker.config,
                version=training.progress.version,
                sample_spec=self._sample.specs,
                metrics=training.metrics,
            )
        worker.client.call(
            "Finish",
            pb.FinishRequest(
                worker=worker.name,
                generation=generation.number,
                version=training.progress.version,
                directory=str(directory),
                metrics=messages.metric_messages(training.metrics),
                term=generation.term,
            ),
            deadline_s=worker.config.orphan_s,
        )


class Evaluator:
    """A member's part of an evaluation; all members have read the same trained model."""

    progress: Progress | None = None

    def __init__(self, worker: Worker, copy: replica.Replica, data: loop.DataSet) -> None:
        self._worker = worker
        self._replica = copy
        self._data = data
        self._metrics: dict[str, messages.Metric] = {}
        self._elements = 0

    def rehearse(self) -> None:
        """What is slow at first is not waited for by anybody."""

    def begin(self) -> None:
        """The model is what it was trained to be."""

    def receive(self, generation: membership.Generation, rank: int, group: "groups.Group") -> None:
        """Nothing is ever sent."""

    def save(self) -> None:
        """Nothing is lost with a worker."""

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        worker = self._worker
        worker.beat.phase("evaluating")
        hosted = generation.streams[generation.members[rank]]
        sums, self._elements = loop.evaluation(
            worker.config,
            self._replica,
            self._data,
            hosted,
            together,
            worker.pool,
            interrupted=worker.beat.interrupts_evaluation,
        )
        self._metrics = dict(self._replica.evaluation_metrics(sums, self._elements))

    def finish(self, generation: membership.Generation) -> None:
        self._worker.client.call(
            "Finish",
            pb.FinishRequest(
                worker=self._worker.name,
                generation=generation.number,
                version=self._elements,
                metrics=messages.metric_messages(self._metrics),
                term=generation.term,
            ),
            deadline_s=self._worker.config.orphan_s,
        )
