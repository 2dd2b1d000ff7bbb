"""A job that was started, or found by its name, and how it stands."""

import atexit
import contextlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from elasticdl import config as configs
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc

_POLL_S = 0.05
_HEAR_S = 1.0  # without an answer, whether the master still runs is looked up

_OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Worker:
    """One worker process: its phase, its rank in the generation (-1: none), its streams."""

    worker: str
    phase: str
    rank: int
    streams: tuple[int, ...]


@dataclass(frozen=True)
class Status:
    """How a job stands.

    `phase` is starting, running, succeeded, failed or cancelled, and `reason` says why in one
    sentence. `version` counts committed steps; `records` those of all epochs together, out of
    `records_total`; `metrics` are of training, `eval_metrics` of the last evaluation, of the
    model after `eval_version` steps. Numbers that are not known are NaN.
    """

    job_name: str
    kind: str
    phase: str
    reason: str
    generation: int
    version: int
    epoch: int
    epochs: int
    epoch_fraction: float
    records: int
    records_total: int
    records_per_s: float
    loss: float
    metrics: Mapping[str, float | list[float]]
    eval_metrics: Mapping[str, float | list[float]]
    eval_version: int
    workers: tuple[Worker, ...]
    seconds_left: float
    failure_kind: str
    failure_message: str
    failure_trace: str
    notices: tuple[str, ...]
    output: str
    num_workers: int
    min_workers: int
    checkpoint_version: int
    checkpoint_problem: str
    term: int

    @property
    def over(self) -> bool:
        return self.phase in _OVER


class Master(Protocol):
    """The way to a job's master, and what is known of the job without it."""

    @property
    def client(self) -> rpc.Client: ...

    @property
    def own(self) -> bool:
        """Whether the job is to end with this process."""
        ...

    @property
    def url(self) -> str:
        """Of the job's page; empty: it has none."""
        ...

    def without(self) -> pb.JobStatus | None:
        """How a job stands whose master does not answer; None: that is not known, ask again.

        Raises:
            UserError: there is no such job any more.
        """
        ...

    def close(self) -> None:
        """Lets the master go, as its job is over."""
        ...


class Job:
    """A job that was started here, or was found by its name.

    One that was started on this machine is looked after as long as this process lives: a master
    that dies is replaced. It is cancelled when this process ends in good order before it; if this
    process is killed, the job's workers go on for `orphan_s`, and the same command takes them over.
    One in a cluster does without this process.
    """

    def __init__(self, config: configs.JobConfig, master: Master) -> None:
        self.config = config
        self._master = master
        self._client = master.client
        self._last: Status | None = None
        self._lock = threading.Lock()
        if master.own:
            atexit.register(self._at_exit)

    def status(self) -> Status:
        """How the job stands now.

        Raises:
            UserError: it was found by its name, and has no master.
        """
        with self._lock:
            if self._last is not None and self._last.over:
                return self._last
            message = None
            while message is None:
                try:
                    message = self._client.call("Status", pb.StatusRequest(), deadline_s=_HEAR_S)
                except rpc.Unreachable:
                    message = self._master.without()
            status = status_of(message)
            if status.over:
                self._close()
            self._last = status
            return status

    def poll(self, timeout_s: float) -> Status:
        """The status as soon as it differs from the last one asked for, at the latest after
        `timeout_s` seconds.
        """
        before, end = self._last, time.monotonic() + timeout_s
        while True:
            time.sleep(_POLL_S)
            status = self.status()
            # As text: a number that is not known (NaN) is no news.
            if repr(status) != repr(before) or time.monotonic() >= end:
                return status

    def wait(self) -> Status:
        """Returns the last status when the job has succeeded.

        Raises:
            UserError, UserCodeError: it failed for something that the user can put right.
            Cancelled: it was stopped.
            RuntimeError: it failed by a fault of elasticdl.
        """
        while not (status := self.status()).over:
            self.poll(0.5)
        if status.phase == "succeeded":
            return status
        if status.phase == "cancelled":
            raise Cancelled(status.reason)
        if status.failure_kind == "user_code":
            raise UserCodeError(status.failure_message, status.failure_trace)
        if status.failure_kind == "user":
            raise UserError(status.failure_message)
        raise RuntimeError("\n".join([status.failure_message, status.failure_trace]).strip())

    @property
    def metrics(self) -> Mapping[str, float | list[float]]:
        """Those of the last evaluation, or, where there was none, of training."""
        status = self.status()
        return status.eval_metrics or {"loss": status.loss, **status.metrics}

    def cancel(self) -> None:
        """Stops the job, which leaves a checkpoint where it writes any; returns when none of its
        processes runs any more. Called once more meanwhile, it does not wait for the checkpoint.
        """
        with contextlib.suppress(rpc.Unreachable):
            if not self.status().over:
                self._client.call("Stop", pb.StopRequest(reason="Stopped on request."))
        while not self.status().over:
            time.sleep(_POLL_S)

    def scale(self, num_workers: int) -> None:
        """Another number of workers from now on.

        Raises:
            UserError: there cannot be so many, or the job is over.
        """
        try:
            reply = self._client.call("Scale", pb.ScaleRequest(num_workers=num_workers))
        except rpc.Unreachable as error:
            raise UserError(
                f"job_name: expected a master of job {self.config.job_name}; there is none now."
            ) from error
        if reply.problem:
            raise UserError(f"num_workers: {reply.problem}.")

    @property
    def url(self) -> str:
        """Of the job's page, as long as this process lives; empty: it has none."""
        return self._master.url

    def _at_exit(self) -> None:
        if self._last is None or not self._last.over:
            self.cancel()

    def _close(self) -> None:
        """Lets the master go, and waits until it has."""
        self._client.close()
        self._master.close()
        atexit.unregister(self._at_exit)


def status_of(message: pb.JobStatus) -> Status:
    values: dict[str, Any] = {
        name: getattr(message, name)
        for name in message.DESCRIPTOR.fields_by_name
        if name not in ("metrics", "eval_metrics", "workers", "notices")
    }
    if not message.records_total:
        values |= {"loss": math.nan, "seconds_left": math.nan}
    return Status(
        **values,
        metrics=messages.metric_values(message.metrics),
        eval_metrics=messages.metric_values(message.eval_metrics),
        workers=tuple(
            Worker(each.worker, each.phase, each.rank, tuple(each.streams))
            for each in message.workers
        ),
        notices=tuple(message.notices),
    )


@dataclass(frozen=True)
class Listed:
    """A job that runs: `phase` is its status's, or orphaned or pending where it has no master."""

    job_name: str
    kind: str
    output: str
    phase: str
    workers: int
    status: Status | None
