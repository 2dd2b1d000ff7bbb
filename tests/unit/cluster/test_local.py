"""Processes are started or adopted, told apart by how they end, and never left by mistake."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys

import psutil
import pytest

from elasticdl.cluster import local
from tests.unit import pipes

# Through a pipe named after the worker.
SAY = "import sys; say = lambda what: open(sys.argv[1] + '.pipe', 'w').write(str(what)); "
WAITS = SAY + "say('up'); import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
# Its child has the pipe open as long as it lives.
PARENT = (
    "import signal, subprocess, sys; pipe = open(sys.argv[1] + '.pipe', 'w'); "
    "child = [sys.executable, '-c', 'import signal; signal.pause()']; "
    "subprocess.Popen(child, pass_fds=[pipe.fileno()]); "
    "print('up', file=pipe, flush=True); "
)


class Cluster:
    """Processes that run Python code, and a record of their ends, in words."""

    def __init__(self, logs, code, **options):
        self.logs = logs
        self.exits = asyncio.Queue()
        self.processes = local.Processes(
            lambda worker: (sys.executable, "-c", code, str(logs / worker)),
            {**os.environ, "GREETING": "hello"},
            logs,
            lambda worker, how: self.exits.put_nowait((worker, str(how))),
            **options,
        )

    async def start(self, worker):
        """Starts a worker; what it says first."""
        pipe = self.logs / f"{worker}.pipe"
        os.mkfifo(pipe)
        self.processes.start(worker)
        return await pipes.heard(pipe)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("pass", "exit status 0"),
        ("import sys; sys.exit(7)", "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_how_a_process_ended_is_told_in_words(tmp_path, code, how):
    async def story():
        cluster = Cluster(tmp_path, code)
        cluster.processes.start("worker-3")
        assert await cluster.exits.get() == ("worker-3", how)
        await cluster.processes.exited(60)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit status 0"),
        (-signal.SIGTERM, "killed by SIGTERM"),
        (-63, "killed by signal 63"),
    ],
)
def test_return_codes_in_words(code, words):
    assert local.ending(code) == words


@pytest.mark.parametrize(
    ("code", "crashed"),
    [
        (0, False),
        (1, True),
        (143, True),
        (-signal.SIGSEGV, True),
        (-signal.SIGABRT, True),
        (-signal.SIGBUS, True),
        (-signal.SIGKILL, False),
        (-signal.SIGTERM, False),
        (-signal.SIGINT, False),
        (-signal.SIGHUP, False),
        (-63, False),
        (None, False),
    ],
)
def test_a_crash_is_a_programs_own_fault(code, crashed):
    ending = local.Ending("as it was", code)
    assert ending.crashed is crashed
    assert f"({ending})" == "(as it was)"


def test_what_a_process_prints_is_in_its_log(tmp_path):
    code = "import os, sys; print(sys.argv[1], os.environ['GREETING']); sys.exit('and why')"

    async def story():
        cluster = Cluster(tmp_path, code)
        cluster.processes.start("worker-0")
        await cluster.exits.get()
        return cluster.processes.log("worker-0")

    log = asyncio.run(story())
    assert log == tmp_path / "worker-0.log"
    assert set(log.read_text().splitlines()) == {f"{tmp_path}/worker-0 hello", "and why"}


def test_standard_input_is_empty_and_the_session_its_own(tmp_path):
    code = "import os, sys; print(sys.stdin.read() == '' and os.getsid(0) == os.getpid())"

    async def story():
        cluster = Cluster(tmp_path, code)
        cluster.processes.start("worker-0")
        await cluster.exits.get()
        assert cluster.processes.log("worker-0").read_text() == "True\n"

    asyncio.run(story())


def test_that_a_process_could_not_be_started_is_reported(tmp_path):
    async def story():
        ends = asyncio.Queue()
        processes = local.Processes(
            lambda worker: (str(tmp_path / "nothing"),),
            {},
            tmp_path,
            lambda *end: ends.put_nowait(end),
        )
        processes.start("worker-0")
        return await ends.get()

    worker, how = asyncio.run(story())
    assert worker == "worker-0"
    assert how.text.startswith("could not be started: [Errno 2] No such file or directory")
    assert how.crashed


def test_a_process_without_a_place_for_its_log_is_reported(tmp_path):
    async def story():
        cluster = Cluster(tmp_path / "nowhere", "pass")
        cluster.processes.start("worker-0")
        return await cluster.exits.get()

    assert "could not be started" in asyncio.run(story())[1]


def test_a_killed_process_is_gone_at_once_and_the_others_stay(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, STUBBORN)
        for worker in ("a", "b"):
            assert await cluster.start(worker) == "up"
        cluster.processes.kill("a")
        cluster.processes.kill("nobody")
        assert await cluster.exits.get() == ("a", "killed by SIGKILL")
        cluster.processes.kill("a")
        cluster.processes.kill("b")
        assert await cluster.exits.get() == ("b", "killed by SIGKILL")

    asyncio.run(story())


def test_stop_asks_first(tmp_path):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); " + WAITS

    async def story():
        cluster = Cluster(tmp_path, code)
        await cluster.start("a")
        await cluster.processes.stop()
        assert cluster.exits.get_nowait() == ("a", "exit status 5")

    asyncio.run(story())


def test_stop_kills_who_does_not_listen(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, STUBBORN, stop_s=0.2)
        await cluster.start("a")
        await cluster.processes.stop()
        assert cluster.exits.get_nowait() == ("a", "killed by SIGKILL")

    asyncio.run(story())


def test_none_is_started_once_all_are_stopped(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS)
        cluster.processes.start("a")
        cluster.processes.start("b", delay_s=60)
        await cluster.processes.stop()
        # It may not even have begun to ignore it.
        assert cluster.exits.get_nowait() == ("a", "killed by SIGTERM")
        cluster.processes.start("c")
        await cluster.processes.exited(60)
        assert cluster.exits.empty()
        assert [path.name for path in tmp_path.iterdir()] == ["a.log"]

    asyncio.run(story())


def test_a_process_is_started_later(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, "pass")
        cluster.processes.start("a", delay_s=0.01)
        assert not cluster.processes.log("a").exists()
        assert await cluster.exits.get() == ("a", "exit status 0")

    asyncio.run(story())


def test_those_that_run_settle_before_another_starts(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS, settle_s=0.001)
        # Those that start at the same time do not wait for each other.
        for worker in ("worker-0", "worker-1"):
            assert await cluster.start(worker) == "up"
        cluster.processes._settle_s = 3600.0
        cluster.processes._began -= 3601.0
        cluster.processes.start("worker-2")
        assert not cluster.processes.log("worker-2").exists()
        cluster.processes.terminate("worker-2")
        assert await cluster.exits.get() == ("worker-2", "not started yet")
        await cluster.processes.stop()

    asyncio.run(story())


def test_a_process_that_is_not_needed_any_more_is_not_started(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, "pass")
        for worker, end in (("a", cluster.processes.kill), ("b", cluster.processes.terminate)):
            cluster.processes.start(worker, delay_s=60)
            end(worker)
            end(worker)
            assert cluster.exits.empty()
            assert await cluster.exits.get() == (worker, "not started yet")
        await cluster.processes.stop()
        assert cluster.exits.empty()

    asyncio.run(story())


def test_only_the_process_itself_is_asked_to_leave(tmp_path):
    code = PARENT + (
        "import os; child = subprocess.Popen(child); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(child.poll() is None)); "
        "print('ready', file=pipe, flush=True); signal.pause()"
    )

    async def story():
        cluster = Cluster(tmp_path, code)
        pipe = tmp_path / "a.pipe"
        os.mkfifo(pipe)
        cluster.processes.start("a")
        with await asyncio.to_thread(pipe.open) as said:
            for line in ("up\n", "ready\n"):
                assert await asyncio.to_thread(said.readline) == line
            cluster.processes.terminate("a")
            cluster.processes.terminate("nobody")
            assert await cluster.exits.get() == ("a", "exit status 1")

    asyncio.run(story())


@pytest.mark.parametrize("rest", ["signal.pause()", "pass"])
def test_what_a_process_has_started_ends_with_it(tmp_path, rest):
    async def story():
        cluster = Cluster(tmp_path, PARENT + rest)
        pipe = tmp_path / "a.pipe"
        os.mkfifo(pipe)
        cluster.processes.start("a")
        with await asyncio.to_thread(pipe.open) as said:
            assert await asyncio.to_thread(said.readline) == "up\n"
            if rest != "pass":
                cluster.processes.kill("a")
            await cluster.exits.get()
            # Its end is reached when nobody has it open any more.
            assert await asyncio.to_thread(said.read) == ""

    asyncio.run(story())


def test_exited_waits_no_longer_than_it_may(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS)
        await cluster.start("a")
        await cluster.processes.exited(0.05)
        assert cluster.exits.empty()
        cluster.processes.kill("a")
        await cluster.processes.exited(60)
        assert cluster.exits.get_nowait() == ("a", "killed by SIGKILL")

    asyncio.run(story())


def test_there_is_at_least_one_core():
    assert local.cores() >= 1


# ---- across masters -----------------------------------------------------------------------------

# Starts workers that run `code`, and goes when they are up.
MASTER = """
import asyncio, os, sys
from pathlib import Path
from elasticdl.cluster import local

end, logs, code, *names = sys.argv[1:]

def command(worker):
    return (sys.executable, "-c", code, str(Path(logs) / worker), "elasticdl.worker", logs, worker)

async def main():
    processes = local.Processes(command, os.environ, Path(logs), print)
    for name in names:
        processes.start(name)
    for name in names:
        assert await asyncio.to_thread(Path(logs, f"{name}.pipe").read_text) == "up"
    if end == "release":
        processes.release()
        processes.start("too-late")
        await processes.exited(60)
    else:
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""
UNKNOWN = "exit status unknown: an earlier master had started it"


SYSTEMS = ["tells", "must be asked"]


@pytest.fixture
def system(request, monkeypatch):
    """Whether the system tells of ends."""
    if request.param == "must be asked":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.fixture
def left(tmp_path):
    """Starts workers by a master that is then no more."""

    def left(*names, code=WAITS, end="kill"):
        for name in names:
            os.mkfifo(tmp_path / f"{name}.pipe")
        master = subprocess.run(
            [sys.executable, "-Walways", "-c", MASTER, end, str(tmp_path), code, *names],
            capture_output=True,
            text=True,
        )
        assert (master.stdout, master.stderr) == ("", "")
        return local.observed(str(tmp_path))

    yield left
    for process in local.observed(str(tmp_path)).values():
        process.kill()


def killed(process):
    """Returns when the process has ended, though nobody may have taken note."""
    end = os.pidfd_open(process.pid)
    process.kill()
    select.select([end], [], [])
    os.close(end)


def adopting(tmp_path, observed, **options):
    cluster = Cluster(tmp_path, WAITS, **options)
    cluster.processes.adopt(observed)
    return cluster


@pytest.mark.parametrize("end", ["kill", "release"])
def test_workers_outlive_their_master_and_are_found(tmp_path, left, end):
    found = left("a", "b", end=end)
    assert sorted(found) == ["a", "b"]
    assert found["a"].cmdline()[-3:] == ["elasticdl.worker", str(tmp_path), "a"]
    assert local.observed(str(tmp_path / "another")) == {}


def test_what_a_worker_has_forked_and_what_only_looks_like_one_is_no_worker(tmp_path, left):
    found = left("a", code="import os; os.fork() or __import__('signal').pause(); " + WAITS)
    (child,) = found["a"].children()
    assert child.cmdline() == found["a"].cmdline()
    assert [process.pid for process in found.values()] == [found["a"].pid]
    for process in (found["a"], child):
        killed(process)
    code = "import sys; sys.stdin.read()"
    command = [sys.executable, "-c", code, "elasticdl.worker", str(tmp_path), "b"]
    for more, session in ((["more"], True), ([], False)):
        other = subprocess.Popen(
            command + more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=session
        )
        assert local.observed(str(tmp_path)) == {}
        other.communicate()


def test_one_that_has_ended_but_was_not_waited_for_is_not_there(tmp_path):
    command = [sys.executable, "-c", "pass", "elasticdl.worker", str(tmp_path), "a"]
    with subprocess.Popen(command, start_new_session=True) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert local.observed(str(tmp_path)) == {}


@pytest.mark.parametrize("system", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("system")
def test_the_end_of_an_adopted_process_is_reported(tmp_path, left):
    found = left("a", "b")

    async def story():
        cluster = adopting(tmp_path, found)
        cluster.processes.adopt(found)
        found["a"].kill()
        assert await cluster.exits.get() == ("a", UNKNOWN)
        cluster.processes.kill("b")
        assert await cluster.exits.get() == ("b", UNKNOWN)
        await cluster.processes.exited(60)
        assert cluster.exits.empty()

    asyncio.run(story())


@pytest.mark.parametrize("system", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("system")
def test_children_end_alike_wherever_they_run(tmp_path):

    async def story():
        cluster = Cluster(tmp_path, "import os; os.abort()")
        cluster.processes.start("a")
        assert await cluster.exits.get() == ("a", "killed by SIGABRT")

    asyncio.run(story())


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("system", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("system")
def test_one_that_ends_before_it_is_adopted_is_reported(tmp_path, noted):
    with subprocess.Popen([sys.executable, "-c", WAITS]) as process:
        worker = psutil.Process(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if noted:
            process.wait()

        async def story():
            cluster = adopting(tmp_path, {"a": worker})
            assert cluster.exits.empty()
            assert await cluster.exits.get() == ("a", UNKNOWN)

        asyncio.run(story())


def test_a_process_that_has_a_workers_number_by_now_is_left_alone(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as other:
        worker = psutil.Process(other.pid)
        worker._ident = (other.pid, worker.create_time() - 1)  # as if it had begun earlier

        async def story():
            cluster = adopting(tmp_path, {"a": worker})
            cluster.processes.kill("a")
            assert await cluster.exits.get() == ("a", UNKNOWN)

        asyncio.run(story())
        other.communicate(b"lives")
    assert other.returncode == 5


def test_adopted_processes_are_asked_and_stopped_like_others(tmp_path, left):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); " + WAITS
    found = left("a", "b", code=code) | left("c", code=STUBBORN)

    async def story():
        cluster = adopting(tmp_path, found, stop_s=1.0)
        await cluster.start("d")
        cluster.processes.terminate("a")
        assert await cluster.exits.get() == ("a", UNKNOWN)
        await cluster.processes.stop()
        ends = [cluster.exits.get_nowait() for _ in range(3)]
        assert set(ends) == {("b", UNKNOWN), ("c", UNKNOWN), ("d", "killed by SIGTERM")}
        assert ends[-1] == ("c", UNKNOWN)
        assert local.observed(str(tmp_path)) == {}

    asyncio.run(story())


def test_what_an_adopted_process_has_started_ends_with_it(tmp_path, left):
    pipe = tmp_path / "loaders"
    os.mkfifo(pipe)
    code = (
        f"import subprocess, sys; pipe = open({str(pipe)!r}, 'w'); "
        "child = [sys.executable, '-c', 'import signal; signal.pause()']; "
        "subprocess.Popen(child, pass_fds=[pipe.fileno()]); "
    ) + WAITS
    # Opened for writing, too, so that the worker needs no reader yet.
    both = os.open(pipe, os.O_RDWR)
    found = left("a", code=code)
    reading = os.open(pipe, os.O_RDONLY)
    os.close(both)

    async def story():
        cluster = adopting(tmp_path, found)
        found["a"].kill()
        assert await cluster.exits.get() == ("a", UNKNOWN)
        assert await asyncio.to_thread(os.read, reading, 1) == b""

    with contextlib.closing(os.fdopen(reading)):
        asyncio.run(story())


@pytest.mark.parametrize("system", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("system")
def test_a_released_process_is_not_watched(tmp_path, left):
    found = left("a", "b")

    async def story():
        first = adopting(tmp_path, {"a": found["a"]})
        second = adopting(tmp_path, found)
        first.processes.release()
        await first.processes.exited(60)
        first.processes.kill("a")
        found["a"].kill()
        assert await second.exits.get() == ("a", UNKNOWN)
        second.processes.kill("b")
        assert await second.exits.get() == ("b", UNKNOWN)
        assert first.exits.empty()

    asyncio.run(story())
