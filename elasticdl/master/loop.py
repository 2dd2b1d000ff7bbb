"""One event at a time: RPC calls and ends of processes → core.job → what is to be done."""

import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elasticdl.cluster import local
from elasticdl.config import JobConfig
from elasticdl.core import job, streams
from elasticdl.data import outputs, sources
from elasticdl.errors import ElasticDLError, UserError
from elasticdl.master import history, places
from elasticdl.model import artifact
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages

_TICK_S = 1.0
_END_S = 30.0  # for workers to end by themselves once the job is over
_LAST_WORDS = 4096  # bytes of a log
_MOST_OF_A_LINE = 300


class Superseded(ElasticDLError):
    """Nobody waits for this answer: the worker has asked again, or is gone."""


@dataclass(frozen=True)
class Data:
    """The files of one data set and their records."""

    files: tuple[str, ...]
    records: tuple[int, ...]
    slice_records: int

    @classmethod
    def of(cls, name: str, patterns: str, config: JobConfig) -> "Data":
        """Raises UserError: no such files, or no records in them."""
        files = sources.files(patterns, name)
        records = sources.record_counts(files)
        sources.require_records(patterns, records, name)
        total = sum(records)
        if config.kind == "predict":
            # A lease is also the unit of what is done again and of the parts.
            size = config.slice_records or max(1, min(4096, -(-total // (4 * config.num_workers))))
        else:
            size = streams.slice_records(total, config.streams, config.slice_records)
        return cls(files, records, size)

    @property
    def total(self) -> int:
        return sum(self.records)

    @property
    def slices(self) -> int:
        return sum(-(-count // self.slice_records) for count in self.records)

    def message(self) -> pb.Dataset:
        return pb.Dataset(
            files=[
                pb.File(path=path, records=count)
                for path, count in zip(self.files, self.records, strict=True)
            ],
            slice_records=self.slice_records,
        )


class Loop:
    """The master of one job.

    Args:
        config: the job.
        start_workers: False: somebody else starts the workers, and sees that they live.
        program: what a worker runs; this master's address and the worker's name are appended.

    Raises:
        UserError: the data or the output is not as it must be; nothing is left behind.
    """

    def __init__(
        self,
        config: JobConfig,
        *,
        start_workers: bool = True,
        program: Sequence[str] = (sys.executable, "-P", "-m", "elasticdl.worker"),
    ) -> None:
        self.config = config
        self.data = Data.of("data", config.data, config)
        self.eval_data = (
            Data.of("eval_data", config.eval_data, config) if config.eval_data else None
        )
        self.places = places.Places.of(config)
        self.history = history.History(self.places.work if config.kind == "train" else None)
        self.over = asyncio.Event()
        self.address = ""
        predicting = config.kind == "predict"
        self.job = job.Job(
            job.Rules(
                workers=config.num_workers if start_workers else 0,
                expected=config.num_workers,
                streams=0 if predicting else config.streams,
                slices=self.data.slices if predicting else 0,
                # A debugger may hold up all threads of the process that it looks into.
                grace_s=job.Rules.grace_s if start_workers else math.inf,
            )
        )
        self._joins: dict[str, asyncio.Future[pb.JoinReply]] = {}
        self._leases: dict[str, pb.LeaseReply] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._phases: dict[str, str] = {}
        self._result_metrics: dict[str, messages.Metric] = {}
        # Of workers that are killed, too, nothing stays behind.
        self._scratch = tempfile.TemporaryDirectory(prefix="elasticdl-", ignore_cleanup_errors=True)
        self._processes = local.Processes(
            lambda worker: (*program, self.address, worker),
            _environment(self._scratch.name),
            self.places.logs,
            self._gone,
        )

    async def run(self) -> None:
        """Returns when the job is over, its result published and its workers have ended."""
        self.post(job.Started())
        try:
            while not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), _TICK_S)
                self.post(job.Ticked(time.monotonic()))
        finally:
            if self.job.phase == "succeeded":
                await self._processes.exited(_END_S)
            await self._processes.stop()
            self.history.close()
            self._scratch.cleanup()
            self.places.discard(keep_logs=self._logs_matter)

    def post(self, event: job.Event) -> None:
        """Takes in one event and does what follows from it."""
        for effect in self.job.step(event):
            self._do(effect)

    def registered(self) -> pb.RegisterReply:
        """What a worker must know to begin."""
        threads = 1 if self.config.reproducible else local.cores() // self.config.num_workers
        return pb.RegisterReply(
            config=self.config.to_json(),
            data=self.data.message(),
            eval_data=self.eval_data.message() if self.eval_data else None,
            threads=max(1, threads),
            work_directory=str(self.places.result),
        )

    async def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """The worker's next generation, when there is one.

        Raises:
            Superseded
        """
        reply: asyncio.Future[pb.JoinReply] = asyncio.get_running_loop().create_future()
        self._supersede(request.worker)
        self._joins[request.worker] = reply
        progress = request.progress if request.HasField("progress") else None
        self.post(
            job.JoinCalled(
                request.worker,
                request.address,
                request.generation,
                messages.progress_value(progress) if progress else None,
            )
        )
        return await reply

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        """Takes in a worker's report."""
        now = time.monotonic()
        if not self.job.over:
            try:
                with outputs.writing(self.config.output):
                    self.history.heartbeat(request, now)
            except UserError as error:
                self.post(job.Failed("user", str(error)))
        self._phases[request.worker] = request.phase
        version = request.progress.version if request.HasField("progress") else self.job.version
        self.post(job.HeartbeatCame(request.worker, now, version))
        return pb.HeartbeatReply(regroup=self.job.regroup(request.worker), stop=self.job.over)

    def lease(self, request: pb.LeaseRequest) -> pb.LeaseReply:
        """Slices for a predicting worker."""
        done = tuple(each.slice for each in request.done)
        before = self.job.leases.done
        self.post(job.LeaseCalled(request.worker, done, most=1))
        if self.job.leases.done > before:
            predicted = self.history.elements + sum(each.records for each in request.done)
            self.history.counted(predicted, time.monotonic())
        return self._leases.pop(request.worker)

    def finish(self, request: pb.FinishRequest) -> pb.FinishReply:
        """Takes in a result, unless it comes from a generation that is no more."""
        if self.job.over or not self.job.current(request.worker, request.generation):
            return pb.FinishReply(
                accepted=False,
                reason=f"generation {request.generation} with {request.worker} is no more",
            )
        self._result_metrics = messages.metric_values(request.metrics)
        if self.config.kind == "evaluate":
            self.history.counted(request.version, time.monotonic())
        self.post(job.ResultCame(request.worker, request.generation, request.directory))
        return pb.FinishReply(accepted=True)

    def status(self) -> pb.JobStatus:
        """How the job stands."""
        progress, failure = self.history.progress, self.job.failure
        epochs = self.config.epochs if self.config.kind == "train" else 1
        total = self.data.total * epochs
        if self.config.max_steps:
            total = min(total, self.config.max_steps * self.config.batch_size)
        done = min(self.history.elements, total)
        speed = self.history.records_per_s(time.monotonic())
        generation = self.job.generation
        ranks = {w: r for r, w in enumerate(generation.members)} if generation else {}
        epoch = min(progress.epoch, epochs - 1) if progress else 0
        in_epoch = done - epoch * self.data.total
        return pb.JobStatus(
            job_name=self.config.job_name,
            kind=self.config.kind,
            phase="running" if self.job.phase == "publishing" else self.job.phase,
            reason=self.job.reason,
            generation=generation.number if generation else 0,
            version=self.history.version if self.config.kind == "train" else self.job.version,
            epoch=epoch,
            epochs=epochs,
            epoch_fraction=min(1.0, max(0.0, in_epoch / self.data.total)),
            records=done,
            records_total=total,
            records_per_s=speed,
            loss=self.history.loss,
            metrics=messages.metric_messages(self.history.metrics),
            eval_version=max(0, self.history.evaluated_version),
            eval_metrics=messages.metric_messages(self._result_metrics or self.history.evaluation),
            workers=[
                pb.WorkerStatus(
                    worker=worker,
                    phase=self._phases.get(worker, "starting"),
                    rank=ranks.get(worker, -1),
                    streams=generation.streams.get(worker, ()) if generation else (),
                )
                for worker in sorted(self.job.alive, key=lambda worker: (len(worker), worker))
            ],
            seconds_left=(total - done) / speed if speed else math.nan,
            failure_kind=failure.kind if failure else "",
            failure_message=self._failure_message(failure) if failure else "",
            failure_trace=failure.trace if failure else "",
            notices=self.history.notices,
            output=self.config.output,
        )

    def _do(self, effect: job.Effect) -> None:
        match effect:
            case job.StartWorker(worker):
                self._processes.start(worker)
            case job.KillWorker(worker):
                self._processes.kill(worker)
            case job.Form(generation):
                for worker in generation.members:
                    self._answer(worker, messages.join_reply(generation, worker))
            case job.Dismiss(worker):
                self._answer(worker, pb.JoinReply(stop=True))
            case job.Lease(worker, slices, finished):
                self._leases[worker] = pb.LeaseReply(
                    slices=slices, finished=finished, wait=not slices and not finished
                )
            case job.Publish(result):
                task = asyncio.get_running_loop().create_task(self._publish(result))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case job.End():
                self.over.set()

    def _answer(self, worker: str, reply: pb.JoinReply) -> None:
        waiting = self._joins.pop(worker, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def _publish(self, result: str) -> None:
        try:
            await asyncio.to_thread(self._move, result)
        except UserError as error:
            self.post(job.NotPublished("user", str(error)))
        except Exception as error:  # the task's outermost frame: without an event, no end
            message = f"{type(error).__name__}: {error}"
            self.post(job.NotPublished("bug", message, traceback.format_exc()))
        else:
            self.post(job.Published())

    def _move(self, result: str) -> None:
        with outputs.writing(self.config.output):
            if self.config.kind == "predict":
                self.places.publish_parts(self.data.slices)
            elif self.config.kind == "evaluate":
                content = json.dumps(history.plain(self._result_metrics), indent=1)
                self.places.publish_file("metrics.json", content + "\n")
            else:
                self.places.add_history(Path(result))
                artifact.publish(Path(result), Path(self.config.output), self.config.overwrite)

    def _supersede(self, worker: str) -> None:
        older = self._joins.pop(worker, None)
        if older is not None and not older.done():
            older.set_exception(Superseded(worker))

    def _gone(self, worker: str, how: str) -> None:
        self._supersede(worker)
        words = _last_words(self._processes.log(worker))
        if words:
            how += f"; its log ends: {words.splitlines()[-1][:_MOST_OF_A_LINE]}"
        known = worker in self.job.alive
        self.post(job.WorkerGone(worker, how, words))
        if known and not self.job.over:
            self.history.notices.append(self.job.reason)

    @property
    def _logs_matter(self) -> bool:
        """Whether there are logs that say more than the user will read from the failure."""
        failure = self.job.failure
        fault = failure.kind == "bug" if failure is not None else not self.job.over
        return fault and any(self.places.logs.glob("*.log"))

    def _failure_message(self, failure: job.Failure) -> str:
        if not self._logs_matter:
            return failure.message
        first, *more = failure.message.splitlines() or [""]
        return "\n".join(
            [f"{first.rstrip('.')}; the workers' logs are in {self.places.logs}", *more]
        )


def _last_words(log: Path) -> str:
    """The last lines of a log; empty if there are none."""
    try:
        with log.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _LAST_WORDS))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines()]
    if length > _LAST_WORDS:
        del lines[0]
    return "\n".join(line for line in lines if line)


def _environment(scratch: str) -> dict[str, str]:
    # Workers find this very elasticdl, however it was installed or put on the path.
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(each for each in (here, os.environ.get("PYTHONPATH", "")) if each)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": scratch,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": "1",
    }
