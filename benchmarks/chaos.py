"""Kills and stops processes of running trainings at random; says what was lost, repeated, changed.

Each of two trainings, with --reproducible, is disturbed for half of the events: one whose weights
say how often each record was used, one whose weights' hash is compared with an undisturbed run of
a single worker. Who is hit is drawn: a worker, a standby, the process that workers are forked from,
the master, or the command itself, which is then given again.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import safetensors.numpy

from elasticdl.cluster import local
from elasticdl.data import examples, recordio

ZOO = Path(__file__).parent / "zoo"
RECORDS = 2048
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


@dataclass(frozen=True)
class Plan:
    """How a training is disturbed: events, seconds between two of them on average, the seed."""

    events: int
    every_s: float
    seed: int
    workers: int
    epochs: int


class Training:
    """One command, given again when it was killed."""

    def __init__(self, model: str, data: Path, output: Path, plan: Plan, pace: str) -> None:
        self.output = output
        self._arguments = [
            *(sys.executable, "-P", "-c", "from elasticdl.cli.main import main; main()", "train"),
            f"--model_zoo={ZOO}",
            f"--model_def=chaos.{model}",
            f"--params=records={RECORDS}, pace={pace!r}",
            f"--data={data}",
            f"--output={output}",
            f"--epochs={plan.epochs}",
            f"--num_workers={plan.workers}",
            "--batch_size=32",
            "--slice_records=100",
            "--checkpoint_every=2s",
            "--reproducible",
            "--quiet",
        ]
        self.start()

    def start(self) -> None:
        self.command = subprocess.Popen(
            self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def processes(self) -> dict[str, psutil.Process]:
        """The job's processes by name, and the command."""
        found = {}
        workers = local.observed(str(self.output / ".elasticdl" / "master.json"))
        for name, process in workers.items():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_STOPPED:
                    found[name] = process
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
            claim = json.loads((self.output / ".elasticdl" / "claim").read_text())
            found["master"] = psutil.Process(claim["pid"])
            for child in found["master"].children():
                if "elasticdl.cluster.forkserver" in child.cmdline():
                    found["forkserver"] = child
        if self.command.poll() is None:
            found["command"] = psutil.Process(self.command.pid)
        return found

    def version(self) -> int:
        with contextlib.suppress(OSError, ValueError, IndexError):
            last = (self.output / ".elasticdl" / "metrics.jsonl").read_bytes().splitlines()[-1]
            return int(json.loads(last)["version"])
        return 0

    def weights(self) -> dict[str, np.ndarray]:
        return dict(safetensors.numpy.load_file(self.output / "parameters.safetensors"))

    def digest(self) -> str:
        content = (self.output / "parameters.safetensors").read_bytes()
        return hashlib.sha256(content).hexdigest()


def write(path: Path) -> Path:
    """The records."""
    random_numbers = np.random.default_rng(0)
    columns = {
        "id": np.arange(RECORDS),
        "x": random_numbers.normal(size=(RECORDS, 8)).astype(np.float32),
    }
    with recordio.Writer(path) as writer:
        writer.extend(examples.encode(columns))
    return path


def disturb(training: Training, plan: Plan, pace: Path) -> dict[str, int]:
    """Does it, and waits for the training's end; what was hit how often."""
    drawn = random.Random(plan.seed)
    done: dict[str, int] = {}
    pause = threading.Event()
    while not training.version():
        if training.command.poll() is not None:
            raise SystemExit(training.command.stderr.read() if training.command.stderr else "")
        pause.wait(0.1)
    for _ in range(plan.events):
        pause.wait(min(drawn.expovariate(1 / plan.every_s), 4 * plan.every_s))
        there = training.processes()
        if training.command.poll() is not None:
            break
        # The command is hit less often: it takes the master with it.
        names = sorted(there, key=lambda name: (len(name), name))
        name = drawn.choice([n for n in names for _ in range(1 if n == "command" else 3)])
        how = "kill" if "worker" not in name else drawn.choice(sorted(SIGNALS))
        with contextlib.suppress(psutil.Error):
            there[name].send_signal(SIGNALS[how])
        kind = f"{how} {name.partition('-')[0]}"
        done[kind] = done.get(kind, 0) + 1
        if name == "command":
            training.command.communicate()
            training.start()
    pace.unlink()
    training.command.wait()
    return done


def run(model: str, plan: Plan) -> bool:
    """One training under the plan, printed as a line; whether nothing was lost or changed."""
    with tempfile.TemporaryDirectory() as directory:
        data = write(Path(directory) / "records.recordio")
        pace = Path(directory) / "pace"
        pace.touch()
        began = time.monotonic()
        training = Training(model, data, Path(directory) / "output", plan, str(pace))
        done = disturb(training, plan, pace)
        if training.command.returncode:
            print(training.command.stderr.read() if training.command.stderr else "")
            return False
        seconds = time.monotonic() - began
        hits = ", ".join(f"{count} x {kind}" for kind, count in sorted(done.items()))
        formed = (training.output / "events.jsonl").read_text().count('"event": "generation"')
        head = (
            f"{model}: {sum(done.values())} events in {seconds:.0f} s ({hits}), "
            f"{formed} generations"
        )
        if model == "Counting":
            lost, repeated = counted(training.weights(), plan.epochs)
            print(f"{head}: {lost} lost, {repeated} repeated", flush=True)
            return not lost and not repeated
        alone = Plan(0, plan.every_s, plan.seed, 1, plan.epochs)
        quiet = Training(model, data, Path(directory) / "undisturbed", alone, "")
        quiet.command.wait()
        same = quiet.digest() == training.digest()
        print(
            f"{head}: {'the hash' if same else 'NOT the hash'} of the undisturbed run", flush=True
        )
        return same


def counted(weights: dict[str, np.ndarray], epochs: int) -> tuple[int, int]:
    """How many records were lost (too few uses) and repeated (too many), by the weights."""
    (counts,) = weights.values()
    uses = np.rint(counts[:, 0]) - epochs
    return int(np.sum(np.maximum(-uses, 0))), int(np.sum(np.maximum(uses, 0)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=20, help="Kills and stops, in all.")
    arguments.add_argument("--every_s", type=float, default=3.0, help="Between two, on average.")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=3)
    arguments.add_argument("--models", nargs="+", default=["Counting", "Network"])
    given = arguments.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    each = max(1, given.events // len(given.models))
    # A step takes at least 20 ms until the last event; then it goes on at full speed.
    epochs = max(2, int(each * given.every_s * 1.2 / 0.02 / (RECORDS / 32)))
    results = [
        run(model, Plan(each, given.every_s, given.seed + number, given.workers, epochs))
        for number, model in enumerate(given.models)
    ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
