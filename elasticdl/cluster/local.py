"""The cluster of this machine: processes."""

import asyncio
import contextlib
import functools
import math
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

from elasticdl.cluster import forkserver


@dataclass(frozen=True)
class _Forked:
    """A child of the fork server, which says when it has ended."""

    pid: int


# A child, or one that is adopted.
_Watched: TypeAlias = subprocess.Popen[bytes] | psutil.Process
_Process: TypeAlias = _Watched | _Forked

# What a program gets by its own fault; other signals come from outside.
_FAULTS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
_ASK_S = 0.05
_NOT_FOUND = 127  # what a shell says of a command that it cannot run


@dataclass(frozen=True)
class Ending:
    """How a process ended: in words, and its return code (negative: a signal; None: unknown)."""

    text: str
    code: int | None
    kind = "bug"  # whose fault, unless somebody has said so
    words = ""  # the last ones stand in its log

    @property
    def crashed(self) -> bool:
        """Whether it was its own fault, as far as can be seen."""
        if self.code is None or self.code >= 0:
            return bool(self.code)
        return -self.code in _FAULTS

    def __str__(self) -> str:
        return self.text


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def observed(locator: str) -> dict[str, psutil.Process]:
    """The job's workers that run on this machine, by name, whoever has started them.

    A worker is known by its arguments, `... elasticdl.worker LOCATOR NAME`; what it has forked
    has the same ones, but leads no process group.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            match _arguments(process):
                case [_, *_, "elasticdl.worker", where, name] if where == locator:
                    leads = os.getpgid(process.pid) == process.pid
                    if leads and process.status() != psutil.STATUS_ZOMBIE:
                        found[name] = process
    return found


def _arguments(process: psutil.Process) -> list[str]:
    """Its command line, behind which a forked process may have room."""
    arguments = list(process.cmdline())
    while arguments and not arguments[-1]:
        arguments.pop()
    return arguments


class Processes:
    """Worker processes of one job, each in a session of its own, its output in a log file.

    What a worker has started itself, such as loaders of the user's code, ends with it.

    Args:
        command: worker name → argument vector.
        environment: what the processes see.
        logs: directory of the log files, NAME.log.
        on_exit: called in the event loop with a worker's name and how it ended, once each.
        stop_s: how long `stop` lets workers end by themselves.
        settle_s: how long a start beside workers that run already is put off: they are about to
            regroup, for which they need the processors that a process takes to start.
        locator: by which workers of an earlier master are found.
        preload: modules that a process of its own imports once, to be forked for each worker;
            empty: each worker imports them itself. So it does, too, where that process is lost.
    """

    def __init__(
        self,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        logs: Path,
        on_exit: Callable[[str, Ending], None],
        stop_s: float = 10.0,
        settle_s: float = 0.0,
        locator: str = "",
        preload: Sequence[str] = (),
    ) -> None:
        self._locator = locator
        self._command = command
        self._environment = dict(environment)
        self._logs = logs
        self._on_exit = on_exit
        self._stop_s = stop_s
        self._settle_s = settle_s
        self._began = -math.inf  # to run at all
        self._delayed: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, _Running] = {}
        # What is to be sent to workers that are about to be there.
        self._forking: dict[str, list[tuple[signal.Signals, _Send]]] = {}
        self._forks = (
            forkserver.ForkServer(preload, environment, logs / "imports.log", self._fork_ended)
            if preload and forkserver.SUPPORTED
            else None
        )
        self._stopped = False
        self._empty = asyncio.Event()
        self._empty.set()

    def start(self, worker: str, delay_s: float = 0.0) -> None:
        """Starts the worker; that it could not be started is reported like its end."""
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        if not self._running and not self._forking:
            self._began = loop.time()
        elif loop.time() - self._began > self._settle_s:
            delay_s = max(delay_s, self._settle_s)
        if delay_s > 0:
            self._delayed[worker] = loop.call_later(delay_s, self._start, worker)
        else:
            self._start(worker)

    async def found(self) -> tuple[str, ...]:
        """Takes over the workers that an earlier master has left; who they are."""
        there = observed(self._locator)
        self.adopt(there)
        return tuple(there)

    def adopt(self, observed: Mapping[str, psutil.Process]) -> None:
        """Takes over workers that an earlier master has started: they are the same from now on,
        but for what is known of their ends.
        """
        for worker, process in observed.items():
            if worker not in self._running:
                self._watch(worker, process)

    def kill(self, worker: str) -> None:
        """Ends the worker at once, whatever it does."""
        self._send(worker, signal.SIGKILL, _signal_all)

    def terminate(self, worker: str) -> None:
        """Asks the worker to leave; what it has started may still be of use to it."""
        self._send(worker, signal.SIGTERM, _signal)

    async def stop(self) -> None:
        """Returns when no worker runs any more: SIGTERM first, SIGKILL after `stop_s` seconds.

        None is started from now on.
        """
        self._start_no_more()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for worker in (*self._forking, *self._running):
                self._send(worker, number, _signal_all)
            await self.exited(self._stop_s)
        if self._forks is not None:
            self._forks.close()

    def release(self) -> None:
        """Leaves the workers to a later master: they live on, and their ends are not reported.

        None is started from now on.
        """
        self._start_no_more()
        for running in self._running.values():
            running.unwatch()
            if isinstance(running.process, subprocess.Popen):
                running.process.returncode = 0  # or Popen would complain that it still runs
        self._running.clear()
        self._forking.clear()
        if self._forks is not None:
            self._forks.close()
        self._empty.set()

    async def exited(self, timeout_s: float) -> None:
        """Returns when all workers have ended by themselves, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def log(self, worker: str) -> Path:
        return self._logs / f"{worker}.log"

    def _start(self, worker: str) -> None:
        self._delayed.pop(worker, None)
        command = self._command(worker)
        if self._forks is None or not forkserver.runs_a_module(command):
            self._spawn(worker)
            return
        self._forking[worker] = []
        self._empty.clear()
        started = functools.partial(self._forked, worker)
        self._forks.fork(command, self.log(worker), started)

    def _forked(self, worker: str, pid: int | None) -> None:
        if worker not in self._forking:
            return  # a later master's
        for_it = self._forking.pop(worker)
        if pid is not None:
            self._running[worker] = _Running(_Forked(pid), lambda: None)
            for number, send in for_it:
                send(_Forked(pid), number)
            return
        self._forks = None
        if self._stopped or for_it:
            self._report(worker, Ending("not started", None))
            self._note_whether_empty()
        else:
            self._spawn(worker)

    def _fork_ended(self, pid: int, code: int | None) -> None:
        names = (name for name, each in self._running.items() if each.process == _Forked(pid))
        worker = next(names, None)
        if worker is None:
            return
        if code is not None:
            self._ended(worker, code)
            return
        # Who would have said it is gone.
        try:
            self._watch(worker, psutil.Process(pid))
        except psutil.NoSuchProcess:
            self._ended(worker, None)

    def _spawn(self, worker: str) -> None:
        try:
            with self.log(worker).open("ab") as log:
                # Returns when the process has its session and runs the command.
                process = subprocess.Popen(
                    self._command(worker),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._report(worker, Ending(f"could not be started: {error}", _NOT_FOUND))
        else:
            self._watch(worker, process)

    def _start_no_more(self) -> None:
        self._stopped = True
        for delayed in self._delayed.values():
            delayed.cancel()
        self._delayed.clear()

    def _send(self, worker: str, number: signal.Signals, send: "_Send") -> None:
        if worker in self._delayed:
            self._delayed.pop(worker).cancel()
            self._report(worker, Ending("not started yet", None))
        elif worker in self._forking:
            self._forking[worker].append((number, send))
        elif worker in self._running:
            send(self._running[worker].process, number)

    def _watch(self, worker: str, process: subprocess.Popen[bytes] | psutil.Process) -> None:
        def ended() -> None:
            # As long as a child's end is not taken note of, its number is nobody else's.
            _signal_all(process, signal.SIGKILL)
            self._ended(worker, process.wait() if isinstance(process, subprocess.Popen) else None)

        self._running[worker] = _Running(process, _watch(process, ended))
        self._empty.clear()

    def _ended(self, worker: str, code: int | None) -> None:
        """Nothing of this worker is there any more."""
        del self._running[worker]
        self._note_whether_empty()
        unknown = "exit status unknown: an earlier master had started it"
        self._on_exit(worker, Ending(unknown if code is None else ending(code), code))

    def _note_whether_empty(self) -> None:
        if not self._running and not self._forking:
            self._empty.set()

    def _report(self, worker: str, how: Ending) -> None:
        # Later: whoever starts or kills a worker is in the middle of something.
        asyncio.get_running_loop().call_soon(self._on_exit, worker, how)


_Send: TypeAlias = Callable[[_Process, signal.Signals], None]


@dataclass(frozen=True)
class _Running:
    """A process, and what ends the watch over it."""

    process: _Process
    unwatch: Callable[[], object]


def _watch(process: _Watched, ended: Callable[[], None]) -> Callable[[], object]:
    """Calls `ended` in the event loop when the process has ended; returns what prevents that."""
    loop = asyncio.get_running_loop()
    try:
        end = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return loop.call_soon(ended).cancel
    except (AttributeError, OSError):
        return _watch_by_asking(process, ended)
    if _is_another(process):
        os.close(end)
        return loop.call_soon(ended).cancel

    def unwatch() -> None:
        loop.remove_reader(end)
        os.close(end)

    def readable() -> None:
        unwatch()
        ended()

    loop.add_reader(end, readable)
    return unwatch


def _watch_by_asking(process: _Watched, ended: Callable[[], None]) -> Callable[[], object]:
    """The same on systems that do not tell."""

    async def ask() -> None:
        while _lives(process):
            await asyncio.sleep(_ASK_S)
        ended()

    return asyncio.get_running_loop().create_task(ask()).cancel


def _lives(process: _Watched) -> bool:
    if isinstance(process, subprocess.Popen):
        return process.poll() is None
    try:
        # An orphan's end may not be taken note of by anybody for long.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_another(process: _Process) -> bool:
    """Whether the number of an adopted process that has ended was given to another one."""
    if not isinstance(process, psutil.Process):
        return False
    return psutil.pid_exists(process.pid) and not process.is_running()


def _signal(process: _Process, number: signal.Signals) -> None:
    """Sends a signal to the process."""
    _deliver(os.kill, process, number)


def _signal_all(process: _Process, number: signal.Signals) -> None:
    """Sends a signal to the process and to all that it has started and that are still there."""
    _deliver(os.killpg, process, number)


def _deliver(send: Callable[[int, int], None], process: _Process, number: signal.Signals) -> None:
    # macOS refuses where only the dead are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not _is_another(process):
            send(process.pid, number)


def ending(code: int) -> str:
    """How a process ended, in words, from its return code (negative: a signal)."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
