"""Processes are started, told apart by how they end, and never left behind."""

import asyncio
import os
import signal
import sys

import pytest

from elasticdl.cluster import local

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
    """Processes that run Python code, and a record of their ends."""

    def __init__(self, logs, code, **options):
        self.logs = logs
        self.exits = asyncio.Queue()
        self.processes = local.Processes(
            lambda worker: (sys.executable, "-c", code, str(logs / worker)),
            {**os.environ, "GREETING": "hello"},
            logs,
            lambda worker, how: self.exits.put_nowait((worker, how)),
            **options,
        )

    async def start(self, worker):
        """Starts a worker; what it says first."""
        pipe = self.logs / f"{worker}.pipe"
        os.mkfifo(pipe)
        self.processes.start(worker)
        return await asyncio.to_thread(pipe.read_text)


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
    assert how.startswith("could not be started: [Errno 2] No such file or directory")


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


def test_a_process_that_is_being_started_when_all_are_stopped_does_not_stay(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, STUBBORN)
        cluster.processes.start("a")
        await cluster.processes.stop()
        assert cluster.exits.get_nowait() == ("a", "killed by SIGKILL")
        cluster.processes.start("b")
        await cluster.processes.exited(60)
        assert not cluster.processes.log("b").exists()

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
