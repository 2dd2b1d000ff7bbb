"""Jobs on this machine: their masters are looked after by the process that has started them."""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from elasticdl import config as configs
from elasticdl.api import running
from elasticdl.cluster import gitzoo, local, registry
from elasticdl.errors import UserError
from elasticdl.master import definition
from elasticdl.model import artifact, zoo
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc

_END_S = 60.0
_LIST_S = 2.0
_MOST_DEATHS = 5  # of masters, within that time
_DEATHS_WITHIN_S = 60.0
_SOON_S = 1.0
_MOST_SAID = 10_000

_INSTEAD = {
    "output": "write to a local directory and copy it",
    "trained_model": "copy it to a local directory",
    "model_zoo": "give a local directory, or the URL of a Git repository",
}


def start(
    config: configs.JobConfig, progress: Callable[[str], None] = lambda line: None
) -> running.Job:
    """Starts the processes of a job, which takes no time worth telling.

    Raises:
        UserError: something is not as it must be; nothing is left behind.
    """
    return running.Job(*_launched(config, start_workers=True))


def run_in_process(
    config: configs.JobConfig, watch: Callable[[running.Status], None] = lambda status: None
) -> running.Job:
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
    launched, keeper = _launched(config, start_workers=False)
    job = running.Job(launched, keeper)

    def follow() -> None:
        while not job.status().over:
            watch(job.poll(0.5))

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    # It brings TensorFlow, which the command that only submits does without.
    worker = importlib.import_module("elasticdl.worker.__main__")
    try:
        with _quiet_tensorflow():
            worker.work(keeper.locator, "worker-0", in_process=True)
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
    config = _with_zoo(config)
    _check(config)
    with _quiet_tensorflow():
        description = importlib.import_module("elasticdl.worker.description")
        return str(description.describe(config))


class _Keeper:
    """Keeps a job's master alive: one that dies is replaced, within a second.

    Attributes:
        own: the job ends with this process.
        problem: why there is no master any more; None: there is one, or there will be.
    """

    own = True
    url = ""

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
        self.client = rpc.Client(self.locator)
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def without(self) -> pb.JobStatus | None:
        """The end of a job for which there can be no master; None: there will be one."""
        if self.problem is None:
            return None
        return pb.JobStatus(
            job_name=self.config.job_name,
            kind=self.config.kind,
            output=self.config.output,
            phase="failed",
            reason=self.problem,
            failure_kind="bug",
            failure_message=self.problem,
            failure_trace=self.said(),
        )

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


class _Found:
    """The master of a job that another process looks after."""

    own = False
    url = ""

    def __init__(self, job_name: str, locator: str) -> None:
        self._job_name = job_name
        self.client = rpc.Client(locator)

    def without(self) -> pb.JobStatus | None:
        raise UserError(
            f"job_name: expected a master of job {self._job_name}; there is none now. It may have "
            "ended; see `elasticdl job list`."
        )

    def close(self) -> None:
        """It goes by itself."""


def jobs(where: configs.Where = configs.HERE) -> list[running.Listed]:
    """The jobs of this user that run on this machine now."""
    entries = registry.entries(os.environ)
    # Those without a master take a while to say nothing.
    with ThreadPoolExecutor(max(1, len(entries))) as pool:
        found = list(pool.map(_listed, entries))
    for entry, listed in zip(entries, found, strict=True):
        if listed is None:
            registry.remove(entry.job_name, entry.locator, os.environ)
    return [listed for listed in found if listed is not None]


def _listed(entry: registry.Entry) -> running.Listed | None:
    """None: the job is no more."""
    with contextlib.closing(rpc.Client(entry.locator)) as client:
        try:
            message = client.call("Status", pb.StatusRequest(), deadline_s=_LIST_S)
        except rpc.Unreachable:
            alive = len(local.observed(entry.locator))
            orphaned = running.Listed(
                entry.job_name, entry.kind, entry.output, "orphaned", alive, None
            )
            return orphaned if alive else None
    status = running.status_of(message)
    if status.job_name != entry.job_name:
        # A later job has the output of one that was killed.
        return None
    workers = len(status.workers)
    return running.Listed(entry.job_name, entry.kind, entry.output, status.phase, workers, status)


def attach(job_name: str, where: configs.Where = configs.HERE) -> running.Job:
    """The running job of this name; one that has lost its master and its command gets them back.

    Raises:
        UserError: there is none.
    """
    entry = registry.find(job_name, os.environ)
    unknown = _unknown(job_name)
    if entry is None:
        raise unknown
    defined = definition.Definition.read(Path(entry.work))
    if defined is None:
        raise unknown
    client = rpc.Client(entry.locator)
    try:
        client.call("Status", pb.StatusRequest(), deadline_s=_LIST_S)
        return running.Job(defined.config, _Found(job_name, entry.locator))
    except rpc.Unreachable:
        if not local.observed(entry.locator):
            raise unknown from None
    finally:
        client.close()
    keeper = _Keeper(defined.config, start_workers=True)
    return running.Job(keeper.config, keeper)


def _unknown(job_name: str) -> UserError:
    names = [each.job_name for each in registry.entries(os.environ)]
    near = difflib.get_close_matches(job_name, names, n=1)
    return UserError(
        f"job_name: expected the name of a job that runs on this machine; got {job_name!r}. "
        + (f"Did you mean {near[0]}?" if near else "See `elasticdl job list`.")
    )


def logs(
    job_name: str,
    where: configs.Where,
    worker: str,
    *,
    follow: bool,
    say: Callable[[str, str], None],
) -> None:
    """Passes on what the workers of a job on this machine have printed so far.

    Raises:
        UserError: there is no such job, or worker; or more is asked than this machine offers.
    """
    entry = registry.find(job_name, os.environ)
    if entry is None:
        raise _unknown(job_name)
    files = sorted(Path(entry.work, "workers").glob("*.log"))
    chosen = [each for each in files if worker in ("", each.stem)]
    if not chosen:
        there = ", ".join(each.stem for each in files) or "none"
        raise UserError(f"worker: expected one of {there}; got {worker or 'all'}.")
    if follow:
        raise UserError(
            f"follow: expected a job in a cluster; {job_name} runs on this machine. Its workers "
            f"print to {chosen[0].parent}; use tail -f."
        )
    for each in chosen:
        for line in each.read_text(encoding="utf-8", errors="replace").splitlines():
            say(each.stem, line)


def delete(job_name: str, where: configs.Where) -> None:
    """Raises UserError: a job on this machine leaves nothing to delete."""
    raise UserError(
        f"job_name: expected a job in a cluster; {job_name} would be one on this machine, which "
        f"leaves nothing to delete. `elasticdl job stop {job_name}` ends it."
    )


def forward(job_name: str, where: configs.Where) -> Any:
    """Raises UserError: a job on this machine has no page yet."""
    raise UserError(
        f"job_name: expected a job in a cluster; {job_name} would be one on this machine. See "
        f"`elasticdl job status {job_name}`."
    )


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


def _with_zoo(config: configs.JobConfig) -> configs.JobConfig:
    """The job with a zoo of this machine, where it names one in a Git repository."""
    if not config.model_zoo:
        return config
    return dataclasses.replace(config, model_zoo=gitzoo.local(config.model_zoo, os.environ))


def _launched(
    config: configs.JobConfig, *, start_workers: bool
) -> "tuple[configs.JobConfig, _Keeper]":
    config = _with_zoo(config)
    _check(config)
    keeper = _Keeper(config, start_workers=start_workers)
    return keeper.config, keeper


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
