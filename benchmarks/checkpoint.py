"""What a checkpoint of 400 MB adds to the longest step of one worker, beside torch's asynchronous
one (torch.distributed.checkpoint), in one run.

Both train a dense model of the same size with Adam. A round is some steps without a checkpoint and
then as many as it takes to write one; what a round adds is its longest step with a checkpoint less
its longest without. Other programs on the machine disturb both: beside the median of the rounds
stands the difference between the quietest round with and the quietest without.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH, LAYERS, BATCH = 2048, 8, 32
QUIET_STEPS = 25
WARM_STEPS = 10


@dataclass(frozen=True)
class Round:
    """Seconds of each step."""

    without: list[float]
    during: list[float]


def rounds(
    number: int, step: Callable[[], object], begin: Callable[[], Callable[[], bool]]
) -> list[Round]:
    """Args:
    begin: begins a checkpoint, and returns what says whether it is written.
    """

    def timed(before: Callable[[], object] = lambda: None) -> float:
        began = time.perf_counter()
        before()
        step()
        return time.perf_counter() - began

    for _ in range(WARM_STEPS):
        step()
    found = []
    for _ in range(number):
        without = [timed() for _ in range(QUIET_STEPS)]
        written: list[Callable[[], bool]] = []
        # What the training thread itself does for a checkpoint counts as part of the next step.
        during = [timed(lambda: written.append(begin()))]  # noqa: B023
        while not written[0]():
            during.append(timed())
        found.append(Round(without, during))
        for _ in range(3):
            step()
    return found


def report(name: str, found: list[Round]) -> None:
    def column(choose: Callable[[list[float]], float]) -> str:
        before = statistics.median(choose(each.without) for each in found)
        during = statistics.median(choose(each.during) for each in found)
        added = statistics.median(choose(each.during) - choose(each.without) for each in found)
        quiet = min(choose(r.during) for r in found) - min(choose(r.without) for r in found)
        return f"{before * 1e3:9.1f} {during * 1e3:9.1f} {added * 1e3:9.1f} {quiet * 1e3:9.1f}"

    steps = statistics.median(len(each.during) for each in found)
    median = column(statistics.median)
    print(f"{name:12} {steps:5.0f} {'median':>8} {median}")
    print(f"{'':18} {'p99':>8} {column(lambda s: float(np.percentile(s, 99)))}")
    print(f"{'':18} {'longest':>8} {column(max)}", flush=True)


def ours(number: int, directory: str) -> None:
    import keras
    import tensorflow as tf

    from elasticdl.core.progress import Cursor, Progress, Used
    from elasticdl.data import pipeline
    from elasticdl.model import spec
    from elasticdl.worker import checkpoint, replica

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    data = (
        random.normal(size=(BATCH, WIDTH)).astype(np.float32),
        random.normal(size=(BATCH, 1)).astype(np.float32),
    )

    def made() -> replica.Replica:
        source = spec.ModelSource(
            str(Path(__file__).parent / "zoo"),
            "large.dense",
            params={"width": WIDTH, "layers": LAYERS},
        )
        specs = tuple(tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in data)
        copy = replica.Replica(spec.load(source), replica.Sample(data, specs))
        copy.prepare_training()
        return copy

    copy = made()
    batch = pipeline.Batch(data, (BATCH,), {0: Used(BATCH, Cursor())}, {})
    writer = checkpoint.Writer(directory)
    version = 0

    def step() -> None:
        nonlocal version
        copy.alone(batch, version)
        version += 1

    def meta() -> checkpoint.Meta:
        return checkpoint.Meta(1, 1, Progress(version, (Cursor(),)))

    def begin() -> Callable[[], bool]:
        writer.begin(copy.snapshot(), meta())
        return writer.idle

    report("ours", rounds(number, step, begin))
    assert not writer.problem, writer.problem

    # What is compared in the end was written while training went on.
    state = {name: array.copy() for name, array in copy.snapshot().items()}
    writer.begin(copy.snapshot(), meta())
    for _ in range(3):
        step()
    writer.close(wait=True)
    other = made()
    began = time.perf_counter()
    found = checkpoint.newest(directory)
    assert found.loaded is not None
    checkpoint.restore(other, found.loaded)
    seconds = time.perf_counter() - began
    equal = all(
        state[name].tobytes() == array.tobytes() for name, array in other.snapshot().items()
    )
    assert writer.last is not None
    print(
        f"ours: {writer.last.bytes / 1e6:.0f} MB, read, checked and restored in {seconds:.2f} s: "
        + ("equal bit for bit" if equal else "NOT EQUAL"),
        flush=True,
    )
    if not equal:
        raise SystemExit(1)


def peer(number: int, directory: str) -> None:
    import torch
    import torch.distributed
    import torch.distributed.checkpoint as dcp

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for _ in range(LAYERS):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    x, y = torch.randn(BATCH, WIDTH), torch.randn(BATCH, 1)
    count = 0

    def step() -> None:
        optimizer.zero_grad()
        torch.mean(torch.square(model(x) - y)).backward()
        optimizer.step()

    def begin() -> Callable[[], bool]:
        nonlocal count
        count += 1
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return dcp.async_save(state, checkpoint_id=f"{directory}/{count % 2}").done

    report("torch DCP", rounds(number, step, begin))
    torch.distributed.destroy_process_group()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--directory", help="where to write; default: a temporary one")
    arguments.add_argument("--only", choices=["ours", "peer"], help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.only:
        {"ours": ours, "peer": peer}[given.only](given.rounds, given.directory)
        return
    print(
        f"{'ms a step':12} {'steps':>5} {'':8} {'without':>9} {'during':>9} {'added':>9} "
        f"{'quietest':>9}",
        flush=True,
    )
    for only in ("ours", "peer"):
        with tempfile.TemporaryDirectory(dir=given.directory) as directory:
            subprocess.run(
                [
                    *(sys.executable, "-m", "benchmarks.checkpoint", f"--only={only}"),
                    *(f"--rounds={given.rounds}", f"--directory={directory}"),
                ],
                check=True,
                stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            )


if __name__ == "__main__":
    main()
