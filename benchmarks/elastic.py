"""What the loss and the arrival of workers cost a job, beside torchft and torchrun in the same run.

Each system trains about the same model in the same number of processes, and the benchmark kills
and stops some of them. A pause is the time from then until the first step that the job commits
without that process. The peers run at the settings of their documentation's examples, and at the
best that were found.
"""

import abc
import argparse
import bisect
import contextlib
import itertools
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import elasticdl
from benchmarks import training
from elasticdl.cluster import local
from elasticdl.data import examples, recordio

REPOSITORY = Path(__file__).parent.parent
PEERS = REPOSITORY / ".venv-peers" / "bin"
BATCH_SIZE = 128
WORKERS = 3
OURS = "elasticdl"
GIVE_UP_S = 30.0
NEVER = 2  # pauses of GIVE_UP_S that show that no other ends either
SETTLE_S = 180.0
QUIET_S = 20.0
MASTER_EVERY_S = 13.0
MASTER_WINDOW_S = 4.0


@dataclass(frozen=True)
class Row:
    """What one system came to in one respect: seconds, or shares of a throughput."""

    what: str
    system: str
    values: tuple[float, ...]
    is_share: bool = False


Name = int | str  # of a worker: the peers' have process ids only


@dataclass(frozen=True)
class Commit:
    """A committed step, or one process's account of it.

    `elements` are those of all processes, `by` those who took part as far as the account says.
    """

    time: float
    version: int
    elements: int
    generation: int
    by: frozenset[Name]


@dataclass
class Lines:
    """Reads what was added to a file since the last time, in whole lines."""

    path: Path
    _read: int = 0

    def new(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode().splitlines()


class Job(abc.ABC):
    """A training in processes of its own; `commits` are those read so far."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []

    @abc.abstractmethod
    def read(self) -> list[Commit]:
        """The commits since the last call, in their order."""

    @abc.abstractmethod
    def members(self) -> dict[Name, int]:
        """Process ids of the living workers that have committed a step."""

    @abc.abstractmethod
    def settled(self) -> bool:
        """Whether all workers have trained together for a second."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all its processes."""

    def settle(self) -> None:
        until = time.time() + SETTLE_S
        while not self.settled():
            if time.time() > until:
                raise SystemExit("the job does not come to train with all its workers")
            time.sleep(0.1)

    def first_after(self, generation: int) -> Commit | None:
        """The first commit in a later generation; None: none came in time."""
        until = time.time() + GIVE_UP_S
        found: list[Commit] = []
        while not found and time.time() < until:
            time.sleep(0.05)
            found = [commit for commit in self.read() if commit.generation > generation]
        return found[0] if found else None

    def since(self, when: float) -> list[Commit]:
        """The commits from that time on, in their order."""
        self.read()
        first = bisect.bisect_left(self.commits, when - 1, key=lambda commit: commit.time)
        late = [commit for commit in self.commits[first:] if commit.time >= when]
        return sorted(late, key=lambda commit: commit.time)


class Ours(Job):
    """An `elasticdl train` with one warm standby."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        workload = next(each for each in training.WORKLOADS if each.model == "dense")
        columns = workload.columns(np.random.default_rng(0), workload.records)
        with recordio.Writer(str(directory / "data.recordio")) as writer:
            writer.extend(examples.encode(columns))
        self._work = directory / "out" / ".elasticdl"
        self._lines = Lines(self._work / "metrics.jsonl")
        self._events = Lines(self._work / "events.jsonl")
        self._generations: list[tuple[int, float, frozenset[Name]]] = []
        self._job = elasticdl.train(
            model_zoo=str(training.HERE / "zoo"),
            model_def="models.dense",
            data=str(directory / "data.recordio"),
            output=str(directory / "out"),
            num_workers=WORKERS,
            standby_workers=1,
            batch_size=BATCH_SIZE,
            epochs=1_000_000,
            log_every_steps=1,
        )

    def read(self) -> list[Commit]:
        lines = [json.loads(line) for line in self._lines.new()]
        # After the steps, so that the generation of each is there.
        for event in map(json.loads, self._events.new()):
            if event["event"] == "generation":
                generation = (event["version"], event["time"], frozenset(event["members"]))
                self._generations.append(generation)
        new = []
        before = self.commits[-1].version if self.commits else 0
        for line in lines:
            if line["kind"] != "train":
                continue
            # The steps that a killed worker could not report any more are in the next line.
            elements, before = (line["version"] - before) * BATCH_SIZE, line["version"]
            number = max(
                (n for n, begun in enumerate(self._generations) if begun[0] < line["version"]),
                default=0,
            )
            members = self._generations[number][2]
            new.append(Commit(line["time"], line["version"], elements, number, members))
        self.commits += new
        return new

    def members(self) -> dict[Name, int]:
        self.read()
        names = self._generations[-1][2]
        workers = local.observed(str(self._work / "master.json"))
        return {name: each.pid for name, each in workers.items() if name in names}

    def settled(self) -> bool:
        self.read()
        phases = [worker.phase for worker in self._job.status().workers]
        now = time.time()
        return (
            phases.count("member") == WORKERS
            and phases.count("standby") == len(phases) - WORKERS == 1
            and now - self._generations[-1][1] > 1
            and bool(self.commits)
            and now - self.commits[-1].time < 2
        )

    def master(self) -> int:
        """The process id of the one that lives."""
        return int(json.loads((self._work / "claim").read_text())["pid"])

    def close(self) -> None:
        self._job.cancel()


class Peer(Job):
    """Processes that write their commits into a directory, each into the file named after it.

    Args:
        directory: the job's own, made and removed by who starts it.
        workers: how many processes commit steps.
    """

    def __init__(self, directory: Path, workers: int) -> None:
        super().__init__()
        self.directory, self.workers = directory, workers
        self.started: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Lines] = {}
        self._last: dict[int, Commit] = {}
        self._begun = 0.0  # the last generation, at its first commit

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
        for path in self.directory.glob("*.commits"):
            self._logs.setdefault(int(path.stem), Lines(path))
        new = []
        for pid, lines in self._logs.items():
            for line in lines.new():
                when, version, elements, generation = line.split()
                by = frozenset([pid])
                new.append(Commit(float(when), int(version), int(elements), int(generation), by))
                self._last[pid] = new[-1]
        new.sort(key=lambda commit: commit.time)
        latest = self.commits[-1].generation if self.commits else -1
        for commit in new:
            if commit.generation > latest:
                self._begun, latest = commit.time, commit.generation
        self.commits += new
        return new

    def members(self) -> dict[Name, int]:
        self.read()
        return {pid: pid for pid in self._logs if _alive(pid)}

    def settled(self) -> bool:
        members = self.members()
        now = time.time()
        lately = [
            pid
            for pid in members.values()
            if pid in self._last
            and self._last[pid].generation == self.commits[-1].generation
            and now - self._last[pid].time < 1
        ]
        return len(lately) == len(members) == self.workers and now - self._begun > 1

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
) -> Peer:
    """One replica a process, each under a torchrun that starts it anew."""
    job = Peer(directory, WORKERS)
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


def torchrun(directory: Path, agents: int, options: Iterable[str] = ()) -> Peer:
    """One agent with all workers, or several with one worker each that meet at the first."""
    job = Peer(directory, agents if agents > 1 else WORKERS)
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
    OURS: Ours,
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
    """Sends a signal to one worker of a settled job, and waits until it has settled again."""
    job.settle()
    time.sleep(chance.uniform(0, 0.5))
    before = job.members()
    victim = chance.choice(sorted(before.values()))
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
    survivors = before.keys() & job.members().keys()
    if not survivors:
        return Loss(first.time - lost)
    later = job.since(first.time)
    joined = next(commit.time for commit in later if commit.by - before.keys())
    survivor = next(iter(survivors))
    times = [
        commit.time for commit in later if survivor in commit.by and abs(commit.time - joined) < 0.5
    ]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    joining = max(gaps) - statistics.median(gaps) if gaps else None
    return Loss(first.time - lost, joined - lost, joining)


def losses(
    system: Callable[[Path], Job], number: signal.Signals, events: int, seed: int
) -> list[Loss]:
    """What each of some losses led to; only the first few where the job never went on."""
    chance = random.Random(seed)
    found: list[Loss] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(system(Path(directory))) as job,
    ):
        while len(found) < events and sum(loss.pause == math.inf for loss in found) < NEVER:
            found.append(lose(job, number, chance))
    return found


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

    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(system(Path(directory))) as job,
    ):
        quiet()
        for interval in every:
            begin = time.time()
            for kill in range(max(1, round(seconds / interval))):
                time.sleep(max(0.0, begin + kill * interval - time.time()))
                if members := sorted(job.members().values()):
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


def masterless(events: int) -> list[Row]:
    """The longest time between two steps around the death of our master, and otherwise."""
    disturbed, undisturbed = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(Ours(Path(directory))) as job,
    ):
        for _ in range(events):
            job.settle()
            # A job gives up whose masters die again and again.
            begin = time.time()
            time.sleep(MASTER_EVERY_S)
            killed = time.time()
            os.kill(job.master(), signal.SIGKILL)
            time.sleep(MASTER_WINDOW_S)
            job.settle()
            undisturbed.append(_longest(job.since(begin), MASTER_WINDOW_S))
            disturbed.append(_longest(job.since(killed - 0.5), MASTER_WINDOW_S))
    return [
        Row("master killed: longest step", OURS, tuple(disturbed)),
        Row("undisturbed: longest step", OURS, tuple(undisturbed)),
    ]


def _longest(commits: list[Commit], seconds: float) -> float:
    times = [commit.time for commit in commits if commit.time < commits[0].time + seconds]
    return max(after - before for before, after in itertools.pairwise(times))


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
    if "master" in given.what and name == OURS:
        rows += masterless(given.events)
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
    arguments.add_argument("--what", nargs="+", default=["kill", "stop", "share", "master"])
    arguments.add_argument("--events", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=120, help="Of kills, for each share.")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    # What runs is ended then too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rows: list[Row] = []
    for name in given.systems:
        rows += measured(name, given)
        show(rows)
        print(flush=True)


if __name__ == "__main__":
    main()
