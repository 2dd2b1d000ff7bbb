"""The cluster of this machine: processes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Worker processes of one job, each in a session of its own, its output in a log file.

    What a worker has started itself, such as loaders of the user's code, ends with it.

    Args:
        command: worker name → argument vector.
        environment: what the processes see.
        logs: directory of the log files, NAME.log.
        on_exit: called in the event loop with a worker's name and how it ended, once each.
        stop_s: how long `stop` lets workers end by themselves.
    """

    def __init__(
        self,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        logs: Path,
        on_exit: Callable[[str, str], None],
        stop_s: float = 10.0,
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._logs = logs
        self._on_exit = on_exit
        self._stop_s = stop_s
        self._running: dict[str, int] = {}
        self._stopped = False
        self._watchers: set[asyncio.Task[None]] = set()

    def start(self, worker: str) -> None:
        """Starts the worker; that it could not be started is reported like its end."""
        if not self._stopped:
            self._watch(self._run(worker))

    def kill(self, worker: str) -> None:
        """Ends the worker at once, whatever it does."""
        if worker in self._running:
            _signal(self._running[worker], signal.SIGKILL)

    async def stop(self) -> None:
        """Returns when no worker runs any more: SIGTERM first, SIGKILL after `stop_s` seconds.

        None is started from now on.
        """
        self._stopped = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running.values():
                _signal(process, number)
            if self._watchers:
                await asyncio.wait(self._watchers, timeout=self._stop_s)

    async def exited(self, timeout_s: float) -> None:
        """Returns when all workers have ended by themselves, or after `timeout_s`."""
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=timeout_s)

    def log(self, worker: str) -> Path:
        return self._logs / f"{worker}.log"

    def _watch(self, run: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(run)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _run(self, worker: str) -> None:
        try:
            with self.log(worker).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *self._command(worker),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._on_exit(worker, f"could not be started: {error}")
            return
        self._running[worker] = process.pid
        if self._stopped:  # while it was being started
            _signal(process.pid, signal.SIGKILL)
        code = await process.wait()
        del self._running[worker]
        _signal(process.pid, signal.SIGKILL)
        self._on_exit(worker, ending(code))


def _signal(leader: int, number: signal.Signals) -> None:
    """Sends a signal to the process and to all that it has started and that are still there."""
    # macOS refuses where only the dead are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def ending(code: int) -> str:
    """How a process ended, in words, from its return code (negative: a signal)."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
