"""One event at a time: RPC calls and ends of processes → core.job → what is to be done."""

import asyncio
import contextlib
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from elasticdl import config as configs
from elasticdl.cluster import local
from elasticdl.config import JobConfig
from elasticdl.core import failures, job, membership, pods
from elasticdl.data import outputs
from elasticdl.errors import ElasticDLError, UserError
from elasticdl.master import history, places
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages

_TICK_S = 0.05
_SETTLE_S = 0.5
# By name: this process itself is to import neither TensorFlow nor torch.
_PRELOAD = ("elasticdl.worker.session", "elasticdl.worker.group")
_STANDBY_AFTER_S = 20.0
_STANDBY_BYTES = 1 << 30  # that one worker may well need
_END_S = 30.0  # for workers to end by themselves once the job is over
_LAST_WORDS = 4096  # bytes of a log
_MOST_OF_A_LINE = 300


log = logging.getLogger(__name__)


class Superseded(ElasticDLError):
    """Nobody waits for this answer: the worker has asked again, or is gone, or another master has
    taken over.
    """


class Ending(Protocol):
    """How a worker's process ended, in words; `crashed`: by its own fault, `kind` says whose."""

    @property
    def text(self) -> str: ...
    @property
    def crashed(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    @property
    def words(self) -> str:
        """The last ones that it printed, where its log does not have them."""
        ...


class Workers(Protocol):
    """The workers' processes in a cluster; see `cluster.local.Processes`."""

    async def found(self) -> tuple[str, ...]: ...
    def start(self, worker: str, delay_s: float = 0.0) -> None: ...
    def terminate(self, worker: str) -> None: ...
    def kill(self, worker: str) -> None: ...
    async def exited(self, timeout_s: float) -> None: ...
    async def stop(self) -> None: ...
    def release(self) -> None: ...
    def log(self, worker: str) -> Path: ...


class Loop:
    """The master of one job.

    Args:
        config: the job.
        start_workers: False: somebody else starts the workers, and sees that they live.
        again: the work directory of this very job, whose last master has died.
        program: what a worker runs; the locator's path and the worker's name are appended.
        submission: tells this job from all others, also those of its name; a later master of it
            takes over. Empty: `again` says so.
        term: the least that this master's number may be.
        workers: makes the workers' processes, where they are not those of this machine.

    Raises:
        UserError: the data or the output is not as it must be; nothing is left behind.
    """

    def __init__(
        self,
        config: JobConfig,
        *,
        start_workers: bool = True,
        again: str = "",
        program: Sequence[str] = (sys.executable, "-P", "-m", "elasticdl.worker"),
        submission: str = "",
        term: int = 0,
        workers: "Callable[[Loop], Workers] | None" = None,
    ) -> None:
        self.places = places.Places.of(config, again=again, submission=submission, term=term)
        found = self.places.definition
        assert found is not None
        self.config = found.config
        self.data, self.eval_data, self.term = found.data, found.eval_data, found.term
        training, predicting = self.config.kind == "train", self.config.kind == "predict"
        published = self.places.beginning is places.Beginning.PUBLISHED
        # What is published has its history, to which nothing more comes.
        self.history = history.History(None if published else self.places.work)
        self.over = asyncio.Event()
        self.superseded = False
        self.address = ""
        took_over = self.places.beginning is places.Beginning.TAKEOVER
        if took_over or self.places.beginning is places.Beginning.RESUME:
            with outputs.writing(self.config.output):
                self.history.go_on(notices=took_over)
        parts_done = self._parts_done() if predicting else ()
        lengths = self.data.lengths if parts_done else []
        self.history.elements = sum(lengths[number] for number in parts_done)
        standby, standby_after_s = self._standby(start_workers)
        self.job = job.Job(
            job.Rules(
                workers=self.config.num_workers,
                starts=start_workers,
                min_workers=self.config.min_workers,
                standby=standby,
                standby_after_s=standby_after_s,
                streams=0 if predicting else self.config.streams,
                slices=self.data.slices if predicting else 0,
                done=parts_done,
                checkpoints=training and self._checkpoints,
                # A debugger may hold up all threads of the process that it looks into.
                grace_s=self.config.grace_s if start_workers else math.inf,
                max_failures=self.config.max_failures,
                rebalance_gain=self.config.rebalance_gain if training else 0.0,
                term=self.term,
            )
        )
        self._joins: dict[str, asyncio.Future[pb.JoinReply]] = {}
        self._leases: dict[str, pb.LeaseReply] = {}
        self._followers: dict[str, asyncio.Queue[pb.Orders]] = {}
        self._ordered: dict[str, job.Orders] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._checkpoint = pb.CheckpointReport()
        self._result_metrics: dict[str, messages.Metric] = {}
        self._processes = workers(self) if workers is not None else self._local(program, standby)

    def _local(self, program: Sequence[str], standby: int) -> Workers:
        locator = str(self.places.locator)
        return local.Processes(
            lambda worker: (*program, locator, worker),
            # Of workers that are killed, too, nothing stays behind.
            _environment(str(self.places.scratch)),
            self.places.logs,
            self.gone,
            settle_s=_SETTLE_S,
            locator=locator,
            preload=_PRELOAD if self.config.num_workers + standby > 1 else (),
        )

    async def run(self) -> None:
        """Returns when the job is over, its result published and its workers have ended; or when
        another master has taken over.
        """
        observed = await self._processes.found() if self.job.rules.starts else ()
        used = [pods.number_of(log.stem) for log in self.places.logs.glob("*.log")]
        publication = self.places.publication
        if self.places.beginning is places.Beginning.PUBLISHED and publication is not None:
            self._do(job.Publish(publication))
        else:
            workers = tuple(sorted(observed, key=pods.natural))
            self.post(job.Started(workers, max(used, default=-1) + 1))
        try:
            while not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), _TICK_S)
                self.post(job.Ticked(time.monotonic()))
        finally:
            if self.superseded:
                self._processes.release()
                self.history.close()
            else:
                await self._end()

    async def _end(self) -> None:
        if self.job.phase == "succeeded":
            await self._processes.exited(_END_S)
        await self._processes.stop()
        self.history.close()
        self.places.discard(keep_logs=self._logs_matter)

    def release(self) -> None:
        """Another master is to take over: this one ends, the workers go on.

        Where the job is over, there is nothing to take over.
        """
        if self.over.is_set():
            return
        self.superseded = True
        self.over.set()

    def post(self, event: job.Event) -> None:
        """Takes in one event and does what follows from it."""
        if self.superseded:
            return
        for effect in self.job.step(event):
            self._do(effect)
        for worker, follower in self._followers.items():
            orders = self.job.orders(worker)
            if self._ordered.get(worker) != orders:
                self._ordered[worker] = orders
                follower.put_nowait(self._orders_message(orders))

    def registered(self) -> pb.RegisterReply:
        """What a worker must know to begin."""
        config = self.config
        if config.cluster == "kubernetes":
            own = configs.parse_resources(
                config.worker_limits or config.worker_requests, "worker_limits"
            )
            threads = math.ceil(configs.quantity(own.get("cpu", "1")))
        else:
            threads = local.cores() // config.num_workers
        if config.reproducible:
            threads = 1
        return pb.RegisterReply(
            config=self.config.to_json(),
            data=self.data.message(),
            eval_data=self.eval_data.message() if self.eval_data else None,
            threads=max(1, threads),
            work_directory=str(self.places.result),
            checkpoint_directory=str(self.places.checkpoints),
            term=self.term,
        )

    async def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """The worker's next generation, when there is one.

        Raises:
            Superseded
        """
        self._check_term(request.term)
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

    async def follow(self, request: pb.OrdersRequest) -> AsyncIterator[pb.Orders]:
        """The worker's orders, now and whenever they change."""
        follower: asyncio.Queue[pb.Orders] = asyncio.Queue()
        self._followers[request.worker] = follower
        orders = self.job.orders(request.worker)
        self._ordered[request.worker] = orders
        self.post(job.ConnectionMade(request.worker))
        try:
            yield self._orders_message(orders)
            while self._followers.get(request.worker) is follower:
                yield await follower.get()
        finally:
            if self._followers.get(request.worker) is follower:
                del self._followers[request.worker]
                self.post(job.ConnectionBroke(request.worker, time.monotonic()))

    def _orders_message(self, orders: job.Orders) -> pb.Orders:
        return pb.Orders(
            regroup=orders.regroup, stop=orders.stop, given_up=orders.given_up, term=self.term
        )

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        """Takes in a worker's report.

        Raises:
            Superseded
        """
        self._check_term(request.term)
        now = time.monotonic()
        if not self.job.over:
            try:
                with outputs.writing(self.config.output):
                    self.history.heartbeat(request, now)
            except UserError as error:
                self.post(job.Failed("user", str(error)))
        if request.HasField("checkpoint") and self.job.current(request.worker, request.generation):
            self._saw_checkpoint(request.checkpoint)
        self.post(
            job.HeartbeatCame(
                request.worker,
                now,
                version=request.progress.version if request.HasField("progress") else -1,
                phase=request.phase,
                generation=request.generation,
                rank=request.rank,
                streams=tuple(request.streams),
                pace=membership.Pace(
                    request.pace.seconds, request.pace.elements, request.pace.steps
                ),
            )
        )
        return pb.HeartbeatReply(term=self.term)

    def _saw_checkpoint(self, report: pb.CheckpointReport) -> None:
        before, self._checkpoint = self._checkpoint, report
        try:
            if report.problem and report.problem != before.problem:
                self.history.note(report.problem)
            if report.version > before.version:
                self.history.event(
                    "checkpoint",
                    version=report.version,
                    seconds=report.seconds,
                    bytes=report.bytes,
                )
        except OSError:
            # The same full disk, most likely: status shows it, and training goes on.
            return

    def pends(self, worker: str, reason: str) -> None:
        """A worker's process cannot start; no reason: it can again."""
        self.post(job.WorkerPends(worker, reason))

    def taken(self, worker: str, reason: str) -> None:
        """The cluster takes a worker away."""
        self.post(job.WorkerTaken(worker, reason))

    def leave(self, request: pb.LeaveRequest) -> pb.LeaveReply:
        """A worker leaves in good order."""
        if not request.saved and self._checkpoints and self.job.last_replica(request.worker):
            return pb.LeaveReply(save=True)
        self.post(job.LeaveCalled(request.worker, request.reason))
        return pb.LeaveReply()

    def fail(self, request: pb.FailRequest) -> pb.FailReply:
        """A worker has failed; whether it is to try again."""
        self.post(
            job.Failed(
                request.kind,
                request.message,
                request.trace,
                request.worker,
                tuple(request.slices),
                request.phase or "starting",
                request.attempt,
            )
        )
        return pb.FailReply(again=self.job.goes_on(request.worker) and request.kind != "bug")

    def scale(self, request: pb.ScaleRequest) -> pb.ScaleReply:
        """Another number of workers, if that can be."""
        problem = self.job.scale_problem(request.num_workers)
        if not problem:
            with contextlib.suppress(OSError):  # a full disk is shown where it delays results
                self.places.scaled(request.num_workers)
            self.post(job.ScaleAsked(request.num_workers))
        return pb.ScaleReply(problem=problem)

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
        """Takes in a result, unless it comes from a generation that is no more.

        Raises:
            Superseded
        """
        self._check_term(request.term)
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
        trained = self.config.kind == "train"
        in_epoch = self.history.epoch_elements if trained else done
        version = self.job.version if not trained or generation else self.history.version
        return pb.JobStatus(
            job_name=self.config.job_name,
            kind=self.config.kind,
            phase=("running" if self.job.phase in ("publishing", "stopping") else self.job.phase),
            reason=self.job.reason,
            generation=generation.number if generation else 0,
            version=version,
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
                    phase=self.job.phase_of(worker),
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
            num_workers=self.job.workers,
            min_workers=self.config.min_workers,
            checkpoint_version=self._checkpoint.version,
            checkpoint_problem=self._checkpoint.problem,
            term=self.term,
        )

    def _do(self, effect: job.Effect) -> None:
        match effect:
            case job.StartWorker(worker, delay_s):
                self._processes.start(worker, delay_s)
            case job.StopWorker(worker):
                self._processes.terminate(worker)
            case job.KillWorker(worker):
                self._processes.kill(worker)
            case job.Note(text):
                self._note(text)
            case job.Save(worker):
                self._answer(worker, pb.JoinReply(save=True, term=self.term))
            case job.Form(generation):
                self._event(
                    "generation",
                    generation=generation.number,
                    members=list(generation.members),
                    streams={name: list(hosted) for name, hosted in generation.streams.items()},
                    version=max(generation.versions.values(), default=-1),
                )
                for worker in generation.members:
                    self._answer(worker, messages.join_reply(generation, worker))
            case job.Dismiss(worker):
                self._answer(worker, pb.JoinReply(stop=True, term=self.term))
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
                self.places.publish_model(Path(result), overwrite=self.config.overwrite)

    def _check_term(self, known: int) -> None:
        """Gives the job up to a later master, of which a worker knows already."""
        if known > self.term:
            self.release()
            raise Superseded(f"master {known} has taken over from {self.term}")

    def _note(self, text: str) -> None:
        generation = self.job.generation
        number = generation.number if generation else 0
        log.info("%s", text, extra={"generation": number, "version": self.job.version})
        with contextlib.suppress(OSError):  # a full disk is shown where it delays results
            self.history.note(text, generation=number, version=self.job.version)

    def _event(self, event: str, **about: Any) -> None:
        with contextlib.suppress(OSError):  # as above
            self.history.event(event, **about)

    def _standby(self, start_workers: bool) -> tuple[int, float]:
        """How many workers stand by, and how long after the beginning they are started."""
        config = self.config
        if config.kind == "predict" or not start_workers:
            return 0, 0.0
        if config.standby_workers >= 0:
            return config.standby_workers, 0.0
        if config.cluster == "kubernetes":
            # What it asks for, others could use.
            return 0, 0.0
        # Short jobs do without; long ones can spare the start of one more process.
        room = psutil.virtual_memory().available > _STANDBY_BYTES * (config.num_workers + 1)
        return int(config.num_workers > 1 and config.kind == "train" and room), _STANDBY_AFTER_S

    def _parts_done(self) -> tuple[int, ...]:
        there = self.places.parts
        names = (outputs.part_name(n, self.data.slices) for n in range(self.data.slices))
        return tuple(n for n, name in enumerate(names) if name in there)

    @property
    def _checkpoints(self) -> bool:
        """Whether checkpoints are asked for."""
        return self.config.checkpoints != configs.Every()

    def _supersede(self, worker: str) -> None:
        older = self._joins.pop(worker, None)
        if older is not None and not older.done():
            older.set_exception(Superseded(worker))

    def gone(self, worker: str, ending: Ending) -> None:
        """A worker's process has ended."""
        self._supersede(worker)
        self._followers.pop(worker, None)
        words = _last_words(self._processes.log(worker)) or ending.words.strip()
        how = ending.text
        if words and ending.crashed and ending.kind == "bug":
            how += f"; its log ends: {words.splitlines()[-1][:_MOST_OF_A_LINE]}"
        self._event("ended", worker=worker, how=ending.text)
        self.post(job.WorkerGone(worker, how, ending.crashed, words, ending.kind))

    @property
    def _logs_matter(self) -> bool:
        """Whether there are logs that say more than the user will read from the failure."""
        failure = self.job.failure
        fault = failure.kind == "bug" if failure is not None else not self.job.over
        return fault and any(self.places.logs.glob("*.log"))

    def _failure_message(self, failure: failures.Failure) -> str:
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
