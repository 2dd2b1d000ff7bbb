"""Commands that run as users run them, what they leave, and data for them."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import uuid

import numpy as np
import psutil
import safetensors.numpy

from elasticdl.data import examples, recordio

ELASTICDL = pathlib.Path(sys.executable).parent / "elasticdl"
ZOO = pathlib.Path(__file__).parent / "zoo"
EPOCHS = 4
CONV = ("--reproducible", f"--epochs={EPOCHS}", "--batch_size=48")
# Every process of a command inherits it, however deep: so that none can be overlooked.
MARK = "JOBS_TEST_COMMAND"


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended, and the processes of it that have not."""

    status: int
    out: str
    err: str
    running: list[str]

    @property
    def events(self):
        """What it printed under --json."""
        return [json.loads(line) for line in self.out.splitlines()]


class Started:
    """A command that runs."""

    def __init__(self, arguments, cwd, home, environ, **popen):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [ELASTICDL, *arguments],
            cwd=cwd,
            env={**clean_environment(home), **environ, MARK: self.mark},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
        )

    def end(self):
        """Waits for its end."""
        with self.process:
            out, err = self.process.communicate()
        return Ended(self.process.returncode, out or "", err or "", self.running())

    def running(self):
        """The command lines of its processes, wherever they hang in the tree."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                found.append(" ".join(process.cmdline()))
        return found

    def processes(self):
        """The command itself, the master and the workers, as far as they run."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _mark_of(process) == self.mark
        ]

    def events(self):
        """The events of --json, as they come."""
        return map(json.loads, self.process.stdout)

    def until_running(self):
        """Returns once the job, started with --json, has committed a step."""
        for event in self.events():
            if event["event"] == "progress" and event["version"] > 0:
                return event
        raise AssertionError(f"the job ended: {self.process.stderr.read()}")


def _mark_of(process):
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get(MARK)
    return None


def clean_environment(home):
    """That of the tests, without what would decide settings or what TensorFlow says."""
    hidden = ("ELASTICDL_", "TF_", "XDG_", "PYTEST_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
    said = {"TERM": "dumb", "ELASTICDL_DEBUG": "1", "ELASTICDL_CLUSTER": "local"}
    return {**kept, "HOME": str(home), **said}


@dataclasses.dataclass(frozen=True)
class Digits:
    """Handwritten digits: files for jobs, and the same as arrays, whose rows `id` names."""

    train: str
    test: str
    images: np.ndarray
    labels: np.ndarray
    train_ids: range
    test_ids: range


def write(path, columns):
    with recordio.Writer(path, chunk_bytes=4096) as writer:
        writer.extend(examples.encode(columns))
    return path


def weights(output):
    """The parameters of a trained model, under their names."""
    return safetensors.numpy.load_file(output / "parameters.safetensors")


def history(output, kind):
    """The lines of metrics.jsonl of one kind."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def zoo_module(name):
    """A module of the tests' zoo, in this process."""
    specification = importlib.util.spec_from_file_location(f"zoo_{name}", ZOO / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
