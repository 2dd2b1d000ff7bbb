"""What `--reproducible` and being elastic cost a step, as ratios taken in one run.

A reproducible training against an ordinary one, as whole jobs; its computation alone, of a worker
that has all streams or half of them; and a step of two members against the same gradients, a bare
all-reduce and the same update. Where single steps are measured both sides take turns, so that what
else the machine does meets both.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import elasticdl
from benchmarks import training
from elasticdl.core import membership, progress
from elasticdl.data import examples, recordio

ZOO = str(Path(__file__).parent / "zoo")
STREAMS = 16
WARM = 5  # steps at the beginning of a turn that do not count


def columns(model: str, count: int) -> list[np.ndarray]:
    """The components of a batch of the model."""
    (workload,) = (each for each in training.WORKLOADS if each.model == model)
    return list(workload.columns(np.random.default_rng(0), count).values())


def prepared(model: str, share: int, threads: int, *, reproducible: bool) -> Any:
    """A replica, as a worker makes it."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    from elasticdl.model import spec
    from elasticdl.worker import replica

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(0)
    if reproducible:
        tf.config.experimental.enable_op_determinism()
    arrays = columns(model, 2)
    features, label = arrays[:-1], arrays[-1]
    names = {"wide": ("ids", "x")}.get(model)
    element = (dict(zip(names, features, strict=True)) if names else features[0], label)
    copy = replica.Replica(
        spec.load(spec.ModelSource(ZOO, f"models.{model}")),
        replica.Sample(
            tf.nest.map_structure(tf.constant, element),
            tf.nest.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), element),
        ),
        reproducible=reproducible,
        tail=progress.tail_length(STREAMS),
        parallelism=threads,
        shares=(share,),
    )
    copy.prepare_training()
    return copy


def batches(model: str, streams: range, share: int) -> Iterator[tuple[Any, progress.Progress]]:
    """The same elements again and again, but the progress goes on."""
    from elasticdl.data import pipeline

    components = tuple(columns(model, len(streams) * share))
    counts = (share,) * len(streams)
    for version in itertools.count():
        used = {s: progress.Used(share, progress.Cursor(0, version, share * s)) for s in streams}
        at = progress.Progress(version, (progress.Cursor(0, version),) * STREAMS)
        yield pipeline.Batch(components, counts, used, {}), at


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- reproducible --------------------------------------------------------------------------------


def alone(pipe: Connection, model: str, streams: int, share: int, reproducible: bool) -> None:
    """A process with one worker: takes as many steps as it is told, and says how long each took."""
    from elasticdl.worker import members

    threads = max(1, (os.cpu_count() or 1) * streams // STREAMS)
    copy = prepared(model, share, threads, reproducible=reproducible)
    member = members.Alone(copy, reproducible=reproducible)
    given = batches(model, range(streams), share)
    while steps := pipe.recv():
        pipe.send([seconds(lambda: member.step(*next(given), False)) for _ in range(steps)])


def reproducible_price(
    model: str, streams: int, share: int, turns: int, steps: int
) -> list[list[float]]:
    """Seconds of ordinary and of reproducible steps."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for reproducible in (False, True):
        ours, theirs = spawn.Pipe()
        arguments = (theirs, model, streams, share, reproducible)
        processes.append(spawn.Process(target=alone, args=arguments, daemon=True))
        processes[-1].start()
        pipes.append(ours)
    found: list[list[float]] = [[], []]
    for _ in range(turns):
        for pipe, times in zip(pipes, found, strict=True):
            pipe.send(WARM + steps)
            times += pipe.recv()[WARM:]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(0)
        process.join()
    return found


def job_price(model: str, workers: int, batch_size: int, epochs: int) -> list[float]:
    """Microseconds an element of a reproducible and of an ordinary training, from its first third
    on.
    """
    (workload,) = (each for each in training.WORKLOADS if each.model == model)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        with recordio.Writer(f"{directory}/data.recordio") as writer:
            columns = workload.columns(np.random.default_rng(0), workload.records)
            writer.extend(examples.encode(columns))
        for reproducible in (True, False):
            output = Path(directory) / str(reproducible)
            elasticdl.train(
                model_zoo=ZOO,
                model_def=f"models.{model}",
                data=f"{directory}/data.recordio",
                output=str(output),
                num_workers=workers,
                batch_size=batch_size,
                epochs=epochs,
                reproducible=reproducible,
                checkpoint_every="0",
            ).wait()
            lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
            steps = [line for line in lines if line["kind"] == "train"]
            first, *rest = steps[len(steps) // 3 :]
            elements = sum(line["elements"] for line in rest)
            found.append((rest[-1]["time"] - first["time"]) / elements * 1e6)
    return found


# ---- elastic -------------------------------------------------------------------------------------


def together(pipe: Connection, model: str, rank: int, batch_size: int, steps: int) -> None:
    """One of two processes: our step and the bare one in turns; sends the seconds of both."""
    import tensorflow as tf
    import torch
    import torch.distributed

    from elasticdl.worker import group, members

    torch.set_num_threads(1)
    share = batch_size // STREAMS
    copy = prepared(model, share, 1, reproducible=False)
    meeting = group.Meeting("127.0.0.1")
    pipe.send(meeting.address)
    rendezvous, bare = pipe.recv()
    joined = group.Group(
        membership.Generation(1, ("a", "b"), rendezvous=rendezvous),
        rank,
        "127.0.0.1",
        lambda: False,
    )
    torch.distributed.init_process_group("gloo", init_method=bare, rank=rank, world_size=2)
    member = members.Together(copy, joined, reproducible=False)
    given = batches(model, range(rank, STREAMS, 2), share)
    begin = copy.layout.rest

    def ours() -> None:
        member.step(*next(given), False)

    def theirs() -> None:
        batch, at = next(given)
        flat = copy.gradients(batch, at.version)
        buffer = torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(flat))
        torch.distributed.all_reduce(buffer)
        summed = tf.experimental.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(buffer))
        copy.apply(summed, buffer[begin:].numpy(), batch_size)

    pairs = [[seconds(ours), seconds(theirs)] for _ in range(WARM + steps)][WARM:]
    pipe.send([list(times) for times in zip(*pairs, strict=True)])
    pipe.recv()


def elastic_price(model: str, batch_size: int, steps: int) -> list[list[float]]:
    """Seconds of our steps and of bare ones."""
    spawn = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        bare = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = spawn.Pipe()
        arguments = (theirs, model, rank, batch_size, steps)
        processes.append(spawn.Process(target=together, args=arguments, daemon=True))
        processes[-1].start()
        pipes.append(ours)
    rendezvous, _ = (pipe.recv() for pipe in pipes)
    for pipe in pipes:
        pipe.send((rendezvous, bare))
    found, _ = (pipe.recv() for pipe in pipes)
    for process in processes:
        # Threads of Gloo that are still there would not let a process end in peace.
        process.kill()
        process.join()
    return list(found)


def show(model: str, streams: int, ours: list[float], theirs: list[float]) -> None:
    us, them = statistics.median(ours), statistics.median(theirs)
    print(
        f"{model:14} {streams:7} {1e3 * us:8.2f} ms {1e3 * them:8.2f} ms {us / them:6.3f}",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    names = [each.model for each in training.WORKLOADS]
    arguments.add_argument("--models", nargs="+", default=names)
    arguments.add_argument("--share", type=int, default=32, help="elements of a stream in a step")
    arguments.add_argument("--batch_size", type=int, default=512, help="of two members")
    arguments.add_argument("--turns", type=int, default=10)
    arguments.add_argument("--steps", type=int, default=30, help="of a turn")
    arguments.add_argument("--epochs", type=int, default=6, help="of a whole job")
    arguments.add_argument("--runs", type=int, default=4, help="of two members")
    given = arguments.parse_args()
    print(f"{'model':14} {'workers':>7} {'exact':>11} {'ordinary':>11} {'ratio':>6}")
    for model, workers in itertools.product(given.models, (1, 2)):
        us, them = job_price(model, workers, given.share * STREAMS, given.epochs)
        print(f"{model:14} {workers:7} {us:8.1f} us {them:8.1f} us {us / them:6.3f}", flush=True)
    print(f"{'model':14} {'streams':>7} {'exact':>11} {'ordinary':>11} {'ratio':>6}")
    for model, streams in itertools.product(given.models, (STREAMS, STREAMS // 2)):
        ordinary, exact = reproducible_price(model, streams, given.share, given.turns, given.steps)
        show(model, streams, exact, ordinary)
    print(f"{'model':14} {'streams':>7} {'elastic':>11} {'bare':>11} {'ratio':>6}")
    for model in given.models:
        # Two processes lie in memory and on the cores as they happen to: some lie better.
        steps = given.turns * given.steps
        runs = [elastic_price(model, given.batch_size, steps) for _ in range(given.runs)]
        ours, bare = ([*itertools.chain(*times)] for times in zip(*runs, strict=True))
        show(model, STREAMS, ours, bare)


if __name__ == "__main__":
    main()
