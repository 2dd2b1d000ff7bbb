"""The cluster of this machine: processes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

_STOP_S = 10.0


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Worker processes of one job, each in a session of its own, its output in a log file.

    Args:
        command: worker name → argument vector.
        environment: what the processes see.
        logs: directory of the log files, NAME.log.
        on_exit: called in the event loop with a worker's name and how it ended, once each.
    """

    def __init__(
        self,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        logs: Path,
        on_exit: Callable[[str, str], None],
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._logs = logs
        self._on_exit = on_exit
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def start(self, worker: str) -> None:
        """Starts the worker; that it could not be started is reported like its end."""
        self._watch(self._run(worker))

    def kill(self, worker: str) -> None:
        """Ends the worker at once, whatever it does."""
        if worker in self._running:
            with contextlib.suppress(ProcessLookupError):
                self._running[worker].kill()

    async def stop(self) -> None:
        """Returns when no worker runs any more: SIGTERM first, SIGKILL after ten seconds."""
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal_)
            if self._watchers:
                await asyncio.wait(self._watchers, timeout=_STOP_S)

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
        self._running[worker] = process
        code = await process.wait()
        del self._running[worker]
        self._on_exit(worker, ending(code))


def ending(code: int) -> str:
    """How a process ended, in words, from its return code (negative: a signal)."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
