"""One JobConfig → one Job."""

import atexit
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from elasticdl import config as configs
from elasticdl.cluster import local, registry
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.master import definition
from elasticdl.model import artifact, zoo
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc

_POLL_S = 0.05
_HEAR_S = 1.0  # without an answer, whether the master still runs is looked up
_END_S = 60.0
_LIST_S = 2.0
_MOST_DEATHS = 5  # of masters, within that time
_DEATHS_WITHIN_S = 60.0
_SOON_S = 1.0
_MOST_SAID = 10_000

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
    num_workers: int
    min_workers: int
    checkpoint_version: int
    checkpoint_problem: str
    term: int

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
            worker.work(job.where, "worker-0", in_process=True)
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
    """A job that was started here, or that runs on this machine and was found by its name.

    One that was started here is looked after as long as this process lives: a master that dies is
    replaced. It is cancelled when this process ends in good order before it; if this process
    is killed, the job's workers go on for `orphan_s`, and the same command takes them over.
    """

    def __init__(self, config: configs.JobConfig, where: str, keeper: "_Keeper | None") -> None:
        self.config = config
        self.where = where
        self._keeper = keeper
        self._client = rpc.Client(where)
        self._last: Status | None = None
        self._lock = threading.Lock()
        if keeper is not None:
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
                except rpc.Unreachable as error:
                    if self._keeper is None:
                        raise UserError(
                            f"job_name: expected a master of job {self.config.job_name}; there is "
                            "none now. It may have ended; see `elasticdl job list`."
                        ) from error
                    if self._keeper.problem is not None:
                        self._last = self._without_master(self._keeper.problem)
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

    def _at_exit(self) -> None:
        if self._last is None or not self._last.over:
            self.cancel()

    def _close(self) -> None:
        """Lets the master go, and waits until it has."""
        self._client.close()
        if self._keeper is not None:
            self._keeper.close()
            atexit.unregister(self._at_exit)

    def _without_master(self, problem: str) -> Status:
        """The end of a job for which there can be no master."""
        assert self._keeper is not None
        blank = _status(pb.JobStatus(phase="failed", failure_kind="bug"))
        trace = self._keeper.said()
        self._close()
        return Status(
            **{
                **vars(blank),
                "reason": problem,
                "failure_message": problem,
                "failure_trace": trace,
                "job_name": self.config.job_name,
                "kind": self.config.kind,
                "output": self.config.output,
            }
        )


class _Keeper:
    """Keeps a job's master alive: one that dies is replaced, within a second.

    Attributes:
        problem: why there is no master any more; None: there is one, or there will be.
    """

    def __init__(self, config: configs.JobConfig, *, start_workers: bool) -> None:
        self.config = config
        self.problem: str | None = None
        self._start_workers = start_workers
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the job
        self._closing = False
        self._lock = threading.Lock()
        self._deaths: list[float] = []  # by their own fault, as far as can be seen
        self._since = time.monotonic()
        self._master, said = self._started(again="")
        if "error" in said:
            self._master.wait()
            self._log.close()
            raise UserError(said["error"])
        if "address" not in said:
            self._master.wait()
            trace = self.said()
            self._log.close()
            raise RuntimeError(f"the master could not start:\n{trace}")
        self.config = dataclasses.replace(config, job_name=said["job_name"])
        self.work = said["work"]
        self.locator = str(Path(self.work) / "master.json")
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def said(self) -> str:
        """The end of what the masters have printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-_MOST_SAID:]

    def close(self) -> None:
        """Lets the master go, and waits until it has."""
        with self._lock:
            self._closing = True
            master = self._master
        assert master.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            master.stdin.close()
        try:
            master.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._log.close()

    def _started(self, *, again: str) -> "tuple[subprocess.Popen[bytes], dict[str, str]]":
        here = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(each for each in (here, os.environ.get("PYTHONPATH", "")) if each)
        master = subprocess.Popen(
            # -P: files in the current directory do not take the place of modules.
            [sys.executable, "-P", "-m", "elasticdl.master"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C is for the command, which stops the job in good order.
            start_new_session=True,
        )
        assert master.stdin is not None
        assert master.stdout is not None
        try:
            order = {
                "config": self.config.to_json(),
                "start_workers": self._start_workers,
                "again": again,
            }
            with contextlib.suppress(BrokenPipeError):
                master.stdin.write(json.dumps(order).encode() + b"\n")
                master.stdin.flush()
            answer = master.stdout.readline()
        except BaseException:
            master.kill()
            master.wait()
            raise
        finally:
            master.stdout.close()
        return master, json.loads(answer) if answer else {}

    def _keep(self) -> None:
        while True:
            code = self._master.wait()
            with self._lock:
                if self._closing:
                    return
                problem = self._again(code)
                if problem:
                    self._end_workers()
                    self.problem = problem
                    return

    def _again(self, code: int) -> str:
        """Starts the next master; why there is none, or nothing."""
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < _DEATHS_WITHIN_S]
        # Others may kill masters as often as they like, if each has had time to be of use.
        if local.Ending("", code).crashed or now - self._since < _SOON_S:
            self._deaths.append(now)
        if len(self._deaths) > _MOST_DEATHS:
            return (
                f"the master ended {len(self._deaths)} times within {_DEATHS_WITHIN_S:.0f} s "
                f"(last: {local.ending(code)})"
            )
        if self._master.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._master.stdin.close()
        self._since = time.monotonic()
        self._master, said = self._started(again=self.work)
        if "error" in said:
            return f"no master could take the place of the one that ended: {said['error']}"
        return ""

    def _end_workers(self) -> None:
        for process in local.observed(self.locator).values():
            with contextlib.suppress(psutil.Error):
                process.kill()


@dataclass(frozen=True)
class Listed:
    """A job on this machine: `phase` is its status's, or orphaned where it has no master."""

    job_name: str
    kind: str
    output: str
    phase: str
    workers: int
    status: Status | None


def jobs() -> list[Listed]:
    """The jobs of this user that run on this machine now."""
    entries = registry.entries(os.environ)
    # Those without a master take a while to say nothing.
    with ThreadPoolExecutor(max(1, len(entries))) as pool:
        found = list(pool.map(_listed, entries))
    for entry, listed in zip(entries, found, strict=True):
        if listed is None:
            registry.remove(entry.job_name, entry.locator, os.environ)
    return [listed for listed in found if listed is not None]


def _listed(entry: registry.Entry) -> Listed | None:
    """None: the job is no more."""
    with contextlib.closing(rpc.Client(entry.locator)) as client:
        try:
            message = client.call("Status", pb.StatusRequest(), deadline_s=_LIST_S)
        except rpc.Unreachable:
            alive = len(local.observed(entry.locator))
            orphaned = Listed(entry.job_name, entry.kind, entry.output, "orphaned", alive, None)
            return orphaned if alive else None
    status = _status(message)
    if status.job_name != entry.job_name:
        # A later job has the output of one that was killed.
        return None
    workers = len(status.workers)
    return Listed(entry.job_name, entry.kind, entry.output, status.phase, workers, status)


def attach(job_name: str) -> Job:
    """The running job of this name; one that has lost its master and its command gets them back.

    Raises:
        UserError: there is none.
    """
    entry = registry.find(job_name, os.environ)
    names = [each.job_name for each in registry.entries(os.environ)]
    near = difflib.get_close_matches(job_name, names, n=1)
    unknown = UserError(
        f"job_name: expected the name of a job that runs on this machine; got {job_name!r}. "
        + (f"Did you mean {near[0]}?" if near else "See `elasticdl job list`.")
    )
    if entry is None:
        raise unknown
    defined = definition.Definition.read(Path(entry.work))
    if defined is None:
        raise unknown
    client = rpc.Client(entry.locator)
    try:
        client.call("Status", pb.StatusRequest(), deadline_s=_LIST_S)
        return Job(defined.config, entry.locator, None)
    except rpc.Unreachable:
        if not local.observed(entry.locator):
            raise unknown from None
    finally:
        client.close()
    keeper = _Keeper(defined.config, start_workers=True)
    return Job(keeper.config, keeper.locator, keeper)


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
    keeper = _Keeper(config, start_workers=start_workers)
    return Job(keeper.config, keeper.locator, keeper)


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
