"""Workers that are forked are like those that are started, and are started where none can be."""

import asyncio
import os
import select
import signal
import subprocess
import sys

import psutil
import pytest

from elasticdl.cluster import forkserver, local
from tests.unit import pipes

pytestmark = pytest.mark.skipif(
    not forkserver.SUPPORTED,
    reason="workers are forked on Linux alone; elsewhere they are started, see test_local",
)

# Runs the code in its first argument; the pipe is named after the worker.
TOLD = "import sys\nexec(sys.argv[1])\n"
SAY = "import os, sys; say = lambda what: open(sys.argv[-1] + '.pipe', 'w').write(str(what)); "
WAITS = "import signal; " + SAY + "say(os.getppid()); signal.pause()"


class Cluster:
    """Processes that are forked, and a record of their ends, in words."""

    def __init__(self, directory, code, preload=("noted",)):
        (directory / "told.py").write_text(TOLD)
        noted = "print(1, file=open({!r}, 'a'))".format(str(directory / "imports"))
        (directory / "noted.py").write_text(noted)
        (directory / "broken.py").write_text("raise ImportError('not here')")
        self.directory = directory
        self.exits = asyncio.Queue()
        self.processes = local.Processes(
            lambda worker: (
                *(sys.executable, "-P", "-m", "told", code),
                *("elasticdl.worker", str(directory), str(directory / worker)),
            ),
            {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), *sys.path])},
            directory,
            lambda worker, how: self.exits.put_nowait((worker, str(how))),
            preload=preload,
        )

    async def start(self, worker):
        """Starts a worker; who its parent is, once it is up."""
        pipe = self.directory / f"{worker}.pipe"
        os.mkfifo(pipe)
        self.processes.start(worker)
        return int(await pipes.heard(pipe))

    @property
    def imports(self):
        return len((self.directory / "imports").read_text())


def gone(pid):
    """Returns when there is no such process."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([end], [], [])
    os.close(end)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("pass", "exit status 0"),
        ("import sys; sys.exit(7)", "exit status 7"),
        ("import sys; sys.exit('and why')", "exit status 1"),
        ("raise ValueError('and why')", "exit status 1"),
        ("import os; os._exit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_how_a_forked_process_ended_is_told_in_words(tmp_path, code, how):
    async def story():
        cluster = Cluster(tmp_path, code)
        for worker in ("worker-9", "worker-10000"):
            cluster.processes.start(worker)
        ends = {await cluster.exits.get() for _ in range(2)}
        assert ends == {("worker-9", how), ("worker-10000", how)}
        await cluster.processes.exited(60)
        await cluster.processes.stop()
        log = cluster.processes.log("worker-9").read_text()
        assert log.rstrip().endswith("and why" if "and why" in code else "")

    asyncio.run(story())


def test_imports_are_done_once_by_a_process_that_ends_with_the_job(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS)
        parents = {await cluster.start(f"worker-{n}") for n in range(3)}
        (server,) = parents - {os.getpid()}
        assert cluster.imports == len("1\n")
        await cluster.processes.stop()
        assert not psutil.pid_exists(server)
        assert cluster.exits.qsize() == 3

    asyncio.run(story())


def test_a_forked_process_looks_like_one_that_was_started(tmp_path):
    code = (
        SAY + "import signal; same = os.getsid(0) == os.getpid(); "
        "handler = signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL; "
        "files = len(os.listdir('/proc/self/fd')); "
        "print(sys.stdin.read() == '', same, handler, sys.argv[2:], files); "
        "say(1); signal.pause()"
    )

    async def story():
        cluster = Cluster(tmp_path, code)
        await cluster.start("worker-12")
        found = local.observed(str(tmp_path))
        name = str(tmp_path / "worker-12")
        assert list(found) == [name]
        assert found[name].name().startswith("python")
        said = cluster.processes.log("worker-12").read_text()
        # The streams, and the directory that is being listed.
        about = f"True True True {['elasticdl.worker', str(tmp_path), name]} 4"
        assert said.splitlines() == [about]
        await cluster.processes.stop()

    asyncio.run(story())


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_one_that_is_not_there_yet_is_ended_all_the_same(tmp_path, end):
    async def story():
        cluster = Cluster(tmp_path, "import signal; signal.pause()")
        cluster.processes.start("worker-0")
        getattr(cluster.processes, end)("worker-0")
        number = "SIGKILL" if end == "kill" else "SIGTERM"
        assert await cluster.exits.get() == ("worker-0", f"killed by {number}")
        cluster.processes.start("worker-1")
        await cluster.processes.stop()
        assert await cluster.exits.get() == ("worker-1", "killed by SIGTERM")

    asyncio.run(story())


def test_what_a_forked_process_has_started_ends_with_it(tmp_path):
    code = (
        SAY + "import subprocess; child = subprocess.Popen(['sleep', '1000']); say(child.pid); "
        "import signal; signal.pause()"
    )

    async def story():
        cluster = Cluster(tmp_path, code)
        child = await cluster.start("worker-0")
        cluster.processes.kill("worker-0")
        assert await cluster.exits.get() == ("worker-0", "killed by SIGKILL")
        await asyncio.to_thread(gone, child)
        await cluster.processes.stop()

    asyncio.run(story())


def test_where_the_imports_fail_each_worker_is_started_by_itself(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS, preload=("noted", "broken"))
        for worker in ("worker-0", "worker-1"):
            assert await cluster.start(worker) == os.getpid()
        assert "not here" in (tmp_path / "imports.log").read_text()
        await cluster.processes.stop()

    asyncio.run(story())


def test_without_the_server_forked_workers_live_on_and_others_are_started(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS)
        server = await cluster.start("worker-0")
        os.kill(server, signal.SIGKILL)
        await asyncio.to_thread(gone, server)
        assert await cluster.start("worker-1") == os.getpid()
        assert cluster.exits.empty()
        cluster.processes.kill("worker-0")
        worker, how = await cluster.exits.get()
        assert worker == "worker-0"
        assert "unknown" in how
        await cluster.processes.stop()
        assert await cluster.exits.get() == ("worker-1", "killed by SIGTERM")

    asyncio.run(story())


def test_a_server_that_does_not_answer_is_given_up(tmp_path):
    async def story():
        cluster = Cluster(tmp_path, WAITS)
        server = await cluster.start("worker-0")
        os.kill(server, signal.SIGSTOP)
        cluster.processes._forks._patience_s = 0.1
        assert await cluster.start("worker-1") == os.getpid()
        assert not psutil.pid_exists(server)
        await cluster.processes.stop()

    asyncio.run(story())


MASTER = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.unit.cluster import test_forkserver

async def main():
    cluster = test_forkserver.Cluster(Path(sys.argv[1]), test_forkserver.WAITS)
    print(await cluster.start("worker-0"), flush=True)
    if sys.argv[2] == "release":
        cluster.processes.release()
    else:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill", "release"])
def test_the_server_ends_with_its_master_and_the_workers_do_not(tmp_path, end):
    master = subprocess.run(
        [sys.executable, "-c", MASTER, str(tmp_path), end],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    gone(int(master.stdout))
    (worker,) = local.observed(str(tmp_path)).values()
    worker.kill()
    gone(worker.pid)
