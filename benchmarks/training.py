"""Training's records per second against Keras and TensorFlow, as ratios taken in one run.

One worker against `keras.Model.fit`; two workers against two processes of TensorFlow's
MultiWorkerMirroredStrategy under tf_keras. Same model, records, batch and number of threads. What
is counted is steady training: the first of the epochs, in which everything starts, is left out.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import elasticdl
from elasticdl.data import examples, recordio

HERE = Path(__file__).parent
FILES = 4


@dataclass(frozen=True)
class Workload:
    """A model of the benchmark's zoo and records for it."""

    model: str
    records: int
    columns: Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def _dense(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    x = random.normal(size=(count, 32)).astype(np.float32)
    return {"x": x, "y": x.sum(axis=1, keepdims=True)}


def _images(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    image = random.normal(size=(count, 28, 28, 1)).astype(np.float32)
    return {"image": image, "label": random.integers(0, 10, (count, 1))}


def _wide(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {
        "ids": random.integers(0, 20_000, (count, 16)),
        "x": random.normal(size=(count, 8)).astype(np.float32),
        "y": random.integers(0, 2, (count, 1)).astype(np.float32),
    }


WORKLOADS = (
    Workload("dense", 65_536, _dense),
    Workload("convolutional", 16_384, _images),
    Workload("wide", 65_536, _wide),
)


def write(workload: Workload, directory: Path) -> None:
    """The records as RecordIO for us and as TFRecord for the peers."""
    import tensorflow as tf

    records = examples.encode(workload.columns(np.random.default_rng(0), workload.records))
    for part in range(FILES):
        some = records[part * len(records) // FILES : (part + 1) * len(records) // FILES]
        with recordio.Writer(str(directory / f"{part}.recordio")) as ours:
            ours.extend(some)
        with tf.io.TFRecordWriter(str(directory / f"{part}.tfrecord")) as theirs:
            for record in some:
                theirs.write(record)


def ours(workload: Workload, data: Path, workers: int, batch_size: int, epochs: int) -> float:
    """Records per second of an `elasticdl train`, from the second epoch on."""
    with tempfile.TemporaryDirectory() as directory:
        elasticdl.train(
            model_zoo=str(HERE / "zoo"),
            model_def=f"models.{workload.model}",
            data=str(data / "*.recordio"),
            output=f"{directory}/out",
            num_workers=workers,
            batch_size=batch_size,
            epochs=epochs,
        ).wait()
        lines = [
            json.loads(line)
            for line in Path(directory, "out", "metrics.jsonl").read_text().splitlines()
        ]
    steady, passed = [], 0
    for line in lines:
        passed += line["elements"]
        if passed >= workload.records:
            steady.append(line)
    elements = sum(line["elements"] for line in steady[1:])
    return float(elements / (steady[-1]["time"] - steady[0]["time"]))


def fit(workload: Workload, data: Path, workers: int, batch_size: int, epochs: int) -> float:
    """Records per second of `fit`, in one process or in several, from the second epoch on."""
    command = [
        *(sys.executable, "-m", "benchmarks._peer_fit", workload.model),
        *map(str, sorted(data.glob("*.tfrecord"))),
        f"--records={workload.records}",
        f"--batch_size={batch_size}",
        f"--epochs={epochs}",
        *(["--together"] if workers > 1 else []),
    ]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, **({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})}
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"the peer failed: {' '.join(command)}")
    rates = [float(line) for line in printed[0].split()[1:]]
    return len(rates) / sum(1 / rate for rate in rates)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", default=[each.model for each in WORKLOADS])
    arguments.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    arguments.add_argument("--batch_size", type=int, default=128)
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--repeat", type=int, default=3)
    given = arguments.parse_args()
    print(f"{'model':14} {'workers':>7} {'ours':>9} {'peer':>9} {'ratio':>6} {'least':>6}")
    for workload in WORKLOADS:
        if workload.model not in given.models:
            continue
        with tempfile.TemporaryDirectory() as directory:
            data = Path(directory)
            write(workload, data)
            for workers in given.workers:
                pairs = []
                for _ in range(given.repeat):
                    both = [
                        run(workload, data, workers, given.batch_size, given.epochs)
                        for run in (ours, fit)
                    ]
                    pairs.append(both)
                us, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratios = [a / b for a, b in pairs]
                print(
                    f"{workload.model:14} {workers:7} {us:9,.0f} {peer:9,.0f} "
                    f"{statistics.median(ratios):6.2f} {min(ratios):6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
