"""One JobConfig → one Job."""

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticdl import config as configs
from elasticdl.cluster import local
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.model import artifact, zoo
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc

_POLL_S = 0.05
_HEAR_S = 1.0  # without an answer, whether the master still runs is looked up
_END_S = 60.0

_INSTEAD = {
    "output": "write to a local directory and copy it",
    "trained_model": "copy it to a local directory",
    "model_zoo": "clone it to a local directory",
}
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

    @property
    def over(self) -> bool:
        return self.phase in _OVER


def train(**settings: Any) -> "Job":
    """Starts a training; the keywords are the settings of `elasticdl train`.

    Values may be text, as on the command line, or Python values; `params` may be a dict.

    Raises:
        UserError: a setting, the data or the output is not as it must be.
    """
    return start(_resolved("train", settings))


def evaluate(**settings: Any) -> "Job":
    """Starts an evaluation; the keywords are the settings of `elasticdl evaluate`."""
    return start(_resolved("evaluate", settings))


def predict(**settings: Any) -> "Job":
    """Starts a prediction; the keywords are the settings of `elasticdl predict`."""
    return start(_resolved("predict", settings))


def start(config: configs.JobConfig) -> "Job":
    """Starts the processes of a job.

    Raises:
        UserError: something is not as it must be; nothing is left behind.
    """
    return _launch(config, start_workers=True)


def run_in_process(
    config: configs.JobConfig, watch: Callable[[Status], None] = lambda status: None
) -> "Job":
    """Runs the one worker of a job in this process and thread, as debuggers want it.

    Args:
        watch: called from another thread with every new status.

    Returns:
        The job, which is over.

    Raises:
        UserError
    """
    if config.num_workers != 1:
        raise UserError(
            f"num_workers: expected 1 with --in_process; got {config.num_workers}. Leave it out."
        )
    job = _launch(config, start_workers=False)

    def follow() -> None:
        while not job.status().over:
            watch(job.poll(0.5))

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    # It brings TensorFlow, which the command that only submits does without.
    worker = importlib.import_module("elasticdl.worker.__main__")
    try:
        with _quiet_tensorflow():
            worker.work(job.address, "worker-0", in_process=True)
    except BaseException:
        job.cancel()
        raise
    finally:
        watcher.join(timeout=_END_S)
    return job


def describe(config: configs.JobConfig) -> str:
    """Builds the model and takes one batch, in this process; says what came out, with shapes.

    Raises:
        UserError, UserCodeError
    """
    _check(config)
    with _quiet_tensorflow():
        description = importlib.import_module("elasticdl.worker.description")
        return str(description.describe(config))


class Job:
    """A job that was started. It ends with the process that started it, at the latest."""

    def __init__(
        self, config: configs.JobConfig, master: "subprocess.Popen[bytes]", address: str, log: Any
    ) -> None:
        self.config = config
        self.address = address
        self._master = master
        self._log = log
        self._client = rpc.Client(address)
        self._last: Status | None = None
        self._lock = threading.Lock()

    def status(self) -> Status:
        """How the job stands now."""
        with self._lock:
            if self._last is not None and self._last.over:
                return self._last
            message = None
            while message is None:
                try:
                    message = self._client.call("Status", pb.StatusRequest(), deadline_s=_HEAR_S)
                except rpc.Unreachable:
                    if self._master.poll() is not None:
                        self._last = self._without_master()
                        return self._last
            status = _status(message)
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
        """Stops the job; returns when none of its processes runs any more."""
        with contextlib.suppress(rpc.Unreachable):
            if not self.status().over:
                self._client.call("Stop", pb.StopRequest(reason="Stopped on request."))
        while not self.status().over:
            time.sleep(_POLL_S)

    def _close(self) -> None:
        """Lets the master go, and waits until it has."""
        assert self._master.stdin is not None
        assert self._master.stdout is not None
        self._client.close()
        with contextlib.suppress(BrokenPipeError):
            self._master.stdin.close()
        try:
            self._master.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._master.kill()
            self._master.wait()
        self._master.stdout.close()
        self._log.close()

    def _without_master(self) -> Status:
        """The end of a job whose master is gone."""
        code = self._master.wait()
        self._log.seek(0)
        trace = self._log.read().decode(errors="replace")
        blank = _status(pb.JobStatus(phase="failed", failure_kind="bug"))
        message = f"the master ended ({local.ending(code)}) before the job did"
        if code == -signal.SIGKILL:
            message += "; if nobody killed it, the machine is out of memory"
        self._close()
        return Status(
            **{
                **vars(blank),
                "reason": message,
                "failure_message": message,
                "failure_trace": trace,
                "job_name": self.config.job_name,
                "kind": self.config.kind,
                "output": self.config.output,
            }
        )


def _resolved(kind: str, settings: Mapping[str, Any]) -> configs.JobConfig:
    given = {name: value for name, value in settings.items() if value is not None}
    return configs.resolve(kind, given, os.environ, source="argument").config


def _check(config: configs.JobConfig) -> None:
    """What can be known before any process is started."""
    for module in ("tensorflow", "torch") if config.num_workers > 1 else ("tensorflow",):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{module}: expected it installed, to compute on this machine; it is not. "
                "Install it with: pip install 'elasticdl[worker]'"
            )
    for name in ("output", "trained_model", "model_zoo"):
        given = getattr(config, name, "")
        if "://" in given:
            raise UserError(
                f"{name}: expected a path on this machine; got {given}. URLs are not supported "
                f"yet: {_INSTEAD[name]}."
            )
    if config.kind == "train":
        models = zoo.Zoo(config.model_zoo)
        models.find(config.model_def)
        for name in (config.input_fn, config.loss, config.optimizer):
            if "." in name:
                models.find(name)
    else:
        artifact.read(config.trained_model)


def _launch(config: configs.JobConfig, *, start_workers: bool) -> Job:
    _check(config)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the job
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(each for each in (here, os.environ.get("PYTHONPATH", "")) if each)
    master = subprocess.Popen(
        # -P: files in the current directory do not take the place of modules.
        [sys.executable, "-P", "-m", "elasticdl.master"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "PYTHONPATH": path},
        # Ctrl-C is for the command, which stops the job in good order.
        start_new_session=True,
    )
    assert master.stdin is not None
    assert master.stdout is not None
    try:
        order = {"config": config.to_json(), "start_workers": start_workers}
        master.stdin.write(json.dumps(order).encode() + b"\n")
        master.stdin.flush()
        answer = master.stdout.readline()
    except BaseException:
        master.kill()
        master.wait()
        raise
    said = json.loads(answer) if answer else {}
    if "address" in said:
        return Job(config, master, said["address"], log)
    master.stdin.close()
    master.stdout.close()
    master.wait()
    with log:
        if "error" in said:
            raise UserError(said["error"])
        log.seek(0)
        raise RuntimeError("the master could not start:\n" + log.read().decode(errors="replace"))


def _status(message: pb.JobStatus) -> Status:
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


@contextlib.contextmanager
def _quiet_tensorflow() -> Any:
    """TensorFlow's start-up messages stay away, unless the user has asked for them."""
    names = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: os.environ.get(name, value) for name, value in names.items()})
    # Written by its C++ libraries to the descriptor itself before they read their log level.
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        importlib.import_module("tensorflow")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
