"""What the loss and the arrival of workers cost a job, beside torchft and torchrun in the same run.

Each system trains about the same model in the same number of processes, and the benchmark kills
and stops some of them. A pause is the time from then until the first step that the job commits
without that process. The peers run at the settings of their documentation's examples, and at the
best that were found.
"""

import argparse
import bisect
import contextlib
import itertools
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent
PEERS = REPOSITORY / ".venv-peers" / "bin"
BATCH_SIZE = 128
WORKERS = 3
OURS = "elasticdl"
GIVE_UP_S = 30.0
NEVER = 2  # pauses of GIVE_UP_S that show that no other ends either
SETTLE_S = 180.0
QUIET_S = 20.0


@dataclass(frozen=True)
class Row:
    """What one system came to in one respect: seconds, or shares of a throughput."""

    what: str
    system: str
    values: tuple[float, ...]
    is_share: bool = False


@dataclass(frozen=True)
class Commit:
    """A step that one process committed; `elements` are those of all processes."""

    time: float
    version: int
    elements: int
    generation: int
    pid: int


@dataclass
class Lines:
    """Reads what was added to a file since the last time, in whole lines."""

    path: Path
    _read: int = 0

    def new(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode().splitlines()


@dataclass
class Job:
    """A training that runs in processes of its own.

    Args:
        directory: the job's own, made and removed by who starts it.
        processes: how many of them commit steps.
    """

    directory: Path
    processes: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    _logs: dict[int, Lines] = field(default_factory=dict)

    def start(self, command: list[str], **environment: str) -> None:
        with (self.directory / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)

    def read(self) -> list[Commit]:
        """The commits since the last call, in their order."""
        for path in self.directory.glob("*.commits"):
            self._logs.setdefault(int(path.stem), Lines(path))
        new = []
        for pid, lines in self._logs.items():
            for line in lines.new():
                when, version, elements, generation = line.split()
                new.append(Commit(float(when), int(version), int(elements), int(generation), pid))
        new.sort(key=lambda commit: commit.time)
        self.commits += new
        return new

    def members(self) -> list[int]:
        """The living processes that have committed a step."""
        self.read()
        return [pid for pid in self._logs if _alive(pid)]

    def settle(self) -> None:
        """Waits until all processes have trained together for a second."""
        until = time.time() + SETTLE_S
        since, together = 0.0, 0
        last: dict[int, Commit] = {}
        while time.time() < until:
            for commit in self.read():
                if commit.generation > together:
                    since, together = commit.time, commit.generation
                last[commit.pid] = commit
            now = time.time()
            lately = {
                pid
                for pid, commit in last.items()
                if commit.generation == together and now - commit.time < 1 and _alive(pid)
            }
            if len(lately) == self.processes and now - since > 1:
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.directory}: the job does not come to train with all processes")

    def first_after(self, generation: int) -> Commit | None:
        """The first commit in a later generation; None: none came in time."""
        until = time.time() + GIVE_UP_S
        found: list[Commit] = []
        while not found and time.time() < until:
            time.sleep(0.05)
            found = [commit for commit in self.read() if commit.generation > generation]
        return found[0] if found else None

    def close(self) -> None:
        for process in self.started:
            children: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                # Workers of torchrun have sessions of their own.
                children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def torchft(
    directory: Path, lighthouse: dict[str, int], heartbeat_s: float, collective_timeout_s: float
) -> Job:
    """One replica a process, each under a torchrun that starts it anew."""
    job = Job(directory, WORKERS)
    port = _port()
    # Each step writes lines of a kilobyte at the default level.
    environment = {"TORCHFT_LIGHTHOUSE": f"http://localhost:{port}", "RUST_LOG": "error"}
    job.start(
        [
            *(f"{PEERS}/torchft_lighthouse", "--min_replicas=1", f"--bind=[::]:{port}"),
            *(f"--{name}={value}" for name, value in lighthouse.items()),
        ],
        **environment,
    )
    for replica in range(WORKERS):
        job.start(
            [
                *(f"{PEERS}/torchrun", "--standalone", "--max_restarts=1000000"),
                *("-m", "benchmarks._peer_torchft", str(directory), f"--replica={replica}"),
                f"--share={round(BATCH_SIZE / WORKERS)}",
                f"--heartbeat_s={heartbeat_s}",
                f"--collective_timeout_s={collective_timeout_s}",
            ],
            **environment,
        )
    return job


def torchrun(directory: Path, agents: int, options: Iterable[str] = ()) -> Job:
    """One agent with all workers, or several with one worker each that meet at the first."""
    job = Job(directory, agents if agents > 1 else WORKERS)
    options = tuple(options)
    # torchrun forks what it runs in its own interpreter only.
    program = (
        ("--run_path", str(REPOSITORY / "benchmarks" / "_peer_torchrun.py"))
        if "--start_method=fork" in options
        else ("-m", "benchmarks._peer_torchrun")
    )
    port = _port()
    for _ in range(agents):
        where = (
            ("--standalone", f"--nproc_per_node={WORKERS}")
            if agents == 1
            else (
                *(f"--nnodes={agents}", "--nproc_per_node=1", "--rdzv_id=benchmark"),
                *("--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}"),
            )
        )
        job.start(
            [
                *(f"{PEERS}/torchrun", *where, "--max_restarts=1000000", *options, *program),
                *(str(directory), f"--batch_size={BATCH_SIZE}"),
            ],
            # A restarted group would otherwise read addresses of the one before (pytorch #135712).
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            PYTHONPATH=str(REPOSITORY),
        )
    return job


# torchft as in its own examples, torchrun with its defaults; then at what gave the shortest pauses
# here without losing members that were only slow. Forked workers spare themselves the import of
# torch. A shorter timeout of torchrun's collectives (by default Gloo's, half an hour) helps against
# a stopped worker no more than that: its agent waits 30 s for one to end, whatever it is told.
_QUICK = ("--monitor_interval=0.02", "--start_method=fork")
_MEETING = ("--rdzv_conf=keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=1",)
SYSTEMS: dict[str, Callable[[Path], Job]] = {
    "torchft": lambda directory: torchft(
        directory,
        lighthouse={"quorum_tick_ms": 100, "join_timeout_ms": 10_000},
        heartbeat_s=0.1,
        collective_timeout_s=5,
    ),
    "torchft, tuned": lambda directory: torchft(
        directory,
        lighthouse={"quorum_tick_ms": 5, "join_timeout_ms": 50, "heartbeat_timeout_ms": 200},
        heartbeat_s=0.02,
        collective_timeout_s=0.3,
    ),
    "torchrun": lambda directory: torchrun(directory, 1),
    "torchrun, tuned": lambda directory: torchrun(directory, 1, _QUICK),
    "torchrun group": lambda directory: torchrun(directory, 2),
    "torchrun group, tuned": lambda directory: torchrun(directory, 2, (*_QUICK, *_MEETING)),
}


@dataclass(frozen=True)
class Loss:
    """What the loss of one process led to, in seconds.

    Args:
        pause: from the loss until the next step is committed.
        replaced: from the loss until another process in its place commits a step; None: all
            processes began anew.
        joining: what that process's arrival added to the time between two steps of the others.
    """

    pause: float
    replaced: float | None = None
    joining: float | None = None


def lose(job: Job, number: signal.Signals, chance: random.Random) -> Loss:
    """Sends a signal to one process of a settled job, and waits until it has settled again."""
    job.settle()
    time.sleep(chance.uniform(0, 0.5))
    members = job.members()
    victim = chance.choice(members)
    job.read()
    generation = job.commits[-1].generation
    lost = time.time()
    os.kill(victim, number)
    first = job.first_after(generation)
    if number == signal.SIGSTOP and _alive(victim):
        # Or nobody would replace it.
        os.kill(victim, signal.SIGKILL)
    job.settle()
    if first is None:
        return Loss(math.inf)
    if not set(members) & set(job.members()):
        return Loss(first.time - lost)
    joined = min(
        commit.time
        for commit in job.commits[_since(job, lost) :]
        if commit.time > lost and commit.pid not in members
    )
    # Steps by the clock of a process that was there before and after.
    survivor = next(pid for pid in members if pid in job.members())
    times = [
        commit.time
        for commit in job.commits[_since(job, lost) :]
        if commit.pid == survivor and abs(commit.time - joined) < 0.5 and commit.time >= first.time
    ]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    joining = max(gaps) - statistics.median(gaps) if gaps else None
    return Loss(first.time - lost, joined - lost, joining)


def _since(job: Job, when: float) -> int:
    return bisect.bisect_left(job.commits, when, key=lambda commit: commit.time)


def losses(
    system: Callable[[Path], Job], number: signal.Signals, events: int, seed: int
) -> list[Loss]:
    """What each of some losses led to; only the first few where the job never went on."""
    chance = random.Random(seed)
    found: list[Loss] = []
    with tempfile.TemporaryDirectory() as directory, running(system(Path(directory))) as job:
        while len(found) < events and sum(loss.pause == math.inf for loss in found) < NEVER:
            found.append(lose(job, number, chance))
    return found


@contextlib.contextmanager
def running(job: Job) -> Iterator[Job]:
    try:
        yield job
    finally:
        job.close()


def kept(
    system: Callable[[Path], Job], every: Iterable[float], seconds: float, seed: int
) -> list[float]:
    """For each time between kills, the share of the undisturbed elements per second."""
    chance = random.Random(seed)
    phases: list[tuple[float, float]] = []

    def quiet() -> None:
        job.settle()
        begin = time.time()
        time.sleep(QUIET_S)
        phases.append((begin, time.time()))

    with tempfile.TemporaryDirectory() as directory, running(system(Path(directory))) as job:
        quiet()
        for interval in every:
            begin = time.time()
            for kill in range(max(1, round(seconds / interval))):
                time.sleep(max(0.0, begin + kill * interval - time.time()))
                if members := job.members():
                    os.kill(chance.choice(members), signal.SIGKILL)
            end = begin + (kill + 1) * interval
            time.sleep(max(0.0, end - time.time()))
            phases.append((begin, end))
            quiet()
        rates = _rates(job, phases)
    return [
        rates[number] / statistics.mean((rates[number - 1], rates[number + 1]))
        for number in range(1, len(rates), 2)
    ]


def _rates(job: Job, phases: Iterable[tuple[float, float]]) -> list[float]:
    """Elements per second in each phase; a step that was done again counts once."""
    job.read()
    steps: dict[int, Commit] = {}
    for commit in sorted(job.commits, key=lambda commit: commit.time):
        steps.setdefault(commit.version, commit)
    return [
        sum(commit.elements for commit in steps.values() if begin <= commit.time < end)
        / (end - begin)
        for begin, end in phases
    ]


def measured(name: str, given: argparse.Namespace) -> list[Row]:
    """All rows of one system."""
    rows = []
    for what, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        if what in given.what:
            found = losses(SYSTEMS[name], number, given.events, given.seed)
            rows.append(Row(f"{what}: pause", name, tuple(loss.pause for loss in found)))
            if what == "kill" and found[0].replaced is not None:
                replaced = tuple(loss.replaced for loss in found if loss.replaced is not None)
                joining = tuple(loss.joining for loss in found if loss.joining is not None)
                rows.append(Row("kill: until replaced", name, replaced))
                rows.append(Row("join: pause of the others", name, joining))
    if "share" in given.what:
        every = (15.0, 5.0)
        shares = kept(SYSTEMS[name], every, given.seconds, given.seed)
        for interval, share in zip(every, shares, strict=True):
            rows.append(Row(f"kept with a kill every {interval:.0f} s", name, (share,), True))
    return rows


def show(rows: list[Row]) -> None:
    """The table: seconds, or shares of the undisturbed throughput, and ratios against ours."""
    print(f"{'':28} {'system':28} {'events':>6} {'p50':>8} {'max':>8} {'to ours':>8}")
    for row in rows:
        median = statistics.median(row.values)
        ours = [other for other in rows if other.what == row.what and other.system == OURS]
        ratio = median / statistics.median(ours[0].values) if ours else math.nan
        print(
            f"{row.what:28} {row.system:28} {len(row.values):6} "
            f"{_number(median, row)} {_number(max(row.values), row)} "
            f"{'' if math.isnan(ratio) else f'{ratio:8.2f}':>8}"
        )


def _number(value: float, row: Row) -> str:
    if value == math.inf:
        return f"{'does not':>8}"
    return f"{value:8.1%}" if row.is_share else f"{value:8.3f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    arguments.add_argument("--what", nargs="+", default=["kill", "stop", "share"])
    arguments.add_argument("--events", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=120, help="Of kills, for each share.")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    rows: list[Row] = []
    for name in given.systems:
        rows += measured(name, given)
        show(rows)
        print(flush=True)


if __name__ == "__main__":
    main()
