"""A process that has imported what workers need, and forks them: a start without the imports."""

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_COMMAND = (sys.executable, "-P", "-m", "elasticdl.cluster.forkserver")
_DIGITS = 8  # by which the name of a worker may be longer than that of the first one

SUPPORTED = sys.platform == "linux"
"""Whether processes can be forked here that have imported much, and be told apart afterwards."""


def runs_a_module(argv: Sequence[str]) -> bool:
    """Whether it is a command that can be forked."""
    return "-m" in argv[:-1]


class ForkServer:
    """Starts workers by a process of its own, which imports `preload` first.

    Orders may be given at once. All callbacks come in the event loop.

    Args:
        preload: names of modules; the last argument of `fork` names the one that is run.
        environment: what this process sees, and those that it forks.
        log: where it writes what imports print.
        on_end: called with the number of each forked process that has ended, and its return code
            (negative: a signal; None: it is not known whether it has ended, the server is gone).
        patience_s: how long an order may take, imports included, before the server is given up.
    """

    def __init__(
        self,
        preload: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        on_end: Callable[[int, int | None], None],
        patience_s: float = 120.0,
    ) -> None:
        self._preload = list(preload)
        self._environment = dict(environment)
        self._log = log
        self._on_end = on_end
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False
        self._heard = b""
        self._waiting: deque[Callable[[int | None], None]] = deque()
        self._forked: set[int] = set()

    def fork(self, argv: Sequence[str], log: Path, started: Callable[[int | None], None]) -> None:
        """Starts a process in a session of its own.

        Args:
            argv: `[python, …, "-m", module, argument, …]`: it runs the module, and its command
                line says this.
            log: where its output is appended.
            started: called with its number, or with None: it could not be forked, as nothing can
                from now on.
        """
        self._waiting.append(started)
        asyncio.get_running_loop().call_later(self._patience_s, self._lose_patience, started)
        if self._process is None and not self._failed:
            # What is forked has room for its command line where ours stands.
            room = len(_shown(argv)) + _DIGITS - len(_shown(_COMMAND)) - 1
            self._start("." * max(room, 1))
        if self._failed or self._process is None or self._process.stdin is None:
            asyncio.get_running_loop().call_soon(self._give_up)
            return
        try:
            order = {"argv": list(argv), "log": str(log)}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            asyncio.get_running_loop().call_soon(self._give_up)

    def close(self) -> None:
        """Ends the server; what it has forked lives on, and its ends are not told."""
        self._failed = True
        self._forked.clear()
        process, self._process = self._process, None
        if process is not None:
            assert process.stdout is not None
            asyncio.get_running_loop().remove_reader(process.stdout)
            _end(process)

    def _start(self, room: str) -> None:
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*_COMMAND, room],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError:
            self._failed = True
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._preload).encode() + b"\n")
        asyncio.get_running_loop().add_reader(self._process.stdout, self._hear)

    def _hear(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        some = os.read(process.stdout.fileno(), 1 << 16)
        if not some:
            self._give_up()
            return
        *lines, self._heard = (self._heard + some).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ended" in said:
                self._forked.discard(said["ended"])
                self._on_end(said["ended"], said["code"])
            else:
                self._forked.add(said["pid"])
                self._waiting.popleft()(said["pid"])

    def _lose_patience(self, started: Callable[[int | None], None]) -> None:
        if started in self._waiting:
            self._give_up()

    def _give_up(self) -> None:
        """The server is gone, or has never been there."""
        forked = sorted(self._forked)
        self.close()
        while self._waiting:
            self._waiting.popleft()(None)
        for pid in forked:
            self._on_end(pid, None)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What was still to be written to it is lost.
            with contextlib.suppress(OSError):
                pipe.close()


# ---- in the server's process ---------------------------------------------------------------------


def main() -> None:
    """Forks as ordered on standard input, until that is closed."""
    orders, says = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    wakes, wake = os.pipe()
    for each in (wakes, wake):
        os.set_blocking(each, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    lines = _Lines(orders)
    for name in json.loads(lines.first()):
        importlib.import_module(name)
    while True:
        for line in lines.new():
            _say(says, pid=_forked(json.loads(line), close=(orders, says, wakes, wake)))
        if lines.closed:
            os._exit(0)
        select.select([orders, wakes], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(wakes, 1 << 16)
        for pid, code in _ended():
            _say(says, ended=pid, code=code)


class _Lines:
    """Lines from a pipe, as they come."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self.closed = False

    def first(self) -> bytes:
        while b"\n" not in self._rest and not self.closed:
            self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        return line or b"[]"

    def new(self) -> list[bytes]:
        if select.select([self._pipe], [], [], 0)[0]:
            self._read()
        *lines, self._rest = self._rest.split(b"\n")
        return lines

    def _read(self) -> None:
        some = os.read(self._pipe, 1 << 16)
        self._rest += some
        self.closed = not some


def _say(pipe: int, **what: Any) -> None:
    # The master may be gone; then there are no more orders either.
    with contextlib.suppress(OSError):
        os.write(pipe, json.dumps(what).encode() + b"\n")


def _ended() -> list[tuple[int, int]]:
    """The children that have ended, with their return codes; nothing that they started is left."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (there := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            # As long as its end is not taken note of, its number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(there.si_pid, signal.SIGKILL)
            _, status = os.waitpid(there.si_pid, 0)
            found.append((there.si_pid, os.waitstatus_to_exitcode(status)))
    return found


def _forked(order: Mapping[str, Any], close: Sequence[int]) -> int:
    """The number of the new process, which leads its session by now."""
    there, tells = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tells)
        os.read(there, 1)
        os.close(there)
        return pid
    try:
        for each in (*close, there):
            os.close(each)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        _rename(order["argv"])
        os.close(tells)
        module = order["argv"].index("-m") + 1
        sys.argv[:] = order["argv"][module:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _exit(end.code)
    except BaseException:  # the process's outermost frame: as Python itself ends with it
        sys.excepthook(*sys.exc_info())
        _exit(1)
    _exit(0)
    raise AssertionError


def _exit(code: Any) -> None:
    """Ends as Python does with this code of a SystemExit."""
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _shown(argv: Sequence[str]) -> bytes:
    """A command line as /proc shows it."""
    return b"".join(os.fsencode(each) + b"\0" for each in argv)


def _rename(argv: Sequence[str]) -> None:
    """Makes the system show these arguments as this process's (proc(5): arg_start, arg_end)."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text, room = _shown(argv), end - begin
    if begin and len(text) <= room:
        ctypes.memmove(begin, text.ljust(room, b"\0"), room)


if __name__ == "__main__":
    main()
