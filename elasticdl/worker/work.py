"""What a member does in each generation, and the result that the job's last one leaves."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from elasticdl.config import JobConfig
from elasticdl.core import membership
from elasticdl.core.progress import Progress
from elasticdl.data import outputs
from elasticdl.model import artifact
from elasticdl.model import source as sources
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc
from elasticdl.worker import heartbeat, loop, replica


@dataclass(frozen=True)
class Worker:
    """A registered worker and what it works with.

    Args:
        client: calls the master.
        beat: reports to the master.
        pool: threads that read ahead.
        directory: where results stand until the master publishes them.
    """

    name: str
    config: JobConfig
    client: rpc.Client
    beat: heartbeat.Heartbeat
    pool: ThreadPoolExecutor
    directory: Path


class Work(Protocol):
    """A member's part of a job that is done in generations."""

    @property
    def shares_state(self) -> bool:
        """Whether members that are behind must receive the state of one that is not."""

    @property
    def progress(self) -> Progress | None:
        """Where the replica stands; None: there is none yet."""

    def state(self) -> bytes:
        """All that a newcomer must have."""

    def received(self, content: bytes | None) -> None:
        """Takes over the source's state, whole; None: this member's own is as good."""

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        """Works with the others until all is done; raises `loop.GivenUp` where it is not."""

    def finish(self, generation: membership.Generation) -> None:
        """Hands the result to the master."""


class Trainer:
    """A member's part of a training."""

    shares_state = True

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
        self._training = loop.Training(
            worker.config, copy, data, eval_data, worker.beat, worker.pool
        )
        self._has_replica = False

    @property
    def progress(self) -> Progress | None:
        return self._training.progress if self._has_replica else None

    def state(self) -> bytes:
        at = messages.progress_message(self._training.progress).SerializeToString()
        head = (len(at), self._training.epoch_version)
        return b"".join(n.to_bytes(8, "little") for n in head) + at + self._replica.dump()

    def received(self, content: bytes | None) -> None:
        if content is not None:
            length, epoch_version = (
                int.from_bytes(content[begin : begin + 8], "little") for begin in (0, 8)
            )
            at = messages.progress_value(pb.Progress.FromString(content[16 : 16 + length]))
            self._replica.restore(content[16 + length :])
            self._training.progress = at
            self._training.epoch_version = epoch_version
        self._has_replica = True

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        self._training.run(generation, rank, together)

    def finish(self, generation: membership.Generation) -> None:
        worker, training = self._worker, self._training
        worker.beat.phase("exporting")
        worker.beat.flush()
        directory = worker.directory / f"generation-{generation.number}"
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
            ),
        )


class Evaluator:
    """A member's part of an evaluation; all members have read the same trained model."""

    shares_state = False
    progress: Progress | None = None

    def __init__(self, worker: Worker, copy: replica.Replica, data: loop.DataSet) -> None:
        self._worker = worker
        self._replica = copy
        self._data = data
        self._metrics: dict[str, messages.Metric] = {}
        self._elements = 0

    def state(self) -> bytes:
        return b""

    def received(self, content: bytes | None) -> None:
        """Nothing is ever sent."""

    def run(self, generation: membership.Generation, rank: int, together: loop.Members) -> None:
        worker = self._worker
        worker.beat.phase("evaluating")
        hosted = generation.streams[generation.members[rank]]
        sums, self._elements = loop.evaluation(
            worker.config, self._replica, self._data, hosted, together, worker.pool
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
            ),
        )
