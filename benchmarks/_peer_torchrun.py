"""One worker of a peer: DistributedDataParallel under torchrun's elastic launch.

It is started by `benchmarks.elastic`. As torchrun's documentation has it, a snapshot is written
every few steps, and each start of the worker group begins with the latest.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks import _torch_model

SNAPSHOT_EVERY = 20  # steps: at most a tenth of a second is lost, and writing costs little


def main() -> None:
    started = time.time_ns()
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory")
    arguments.add_argument("--batch_size", type=int, required=True)
    given = arguments.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generation = torch.tensor(started)
    dist.all_reduce(generation, dist.ReduceOp.MAX)
    module = _torch_model.dense()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    version = 0
    snapshot = Path(given.directory, "snapshot.pt")
    if snapshot.exists():
        loaded = torch.load(snapshot)
        module.load_state_dict(loaded["module"])
        optimizer.load_state_dict(loaded["optimizer"])
        version = loaded["version"]
    model = DistributedDataParallel(module)
    commits = _torch_model.Commits(given.directory)
    share = given.batch_size // world + (rank < given.batch_size % world)
    for x, y in _torch_model.batches(share, seed=rank):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        version += 1
        commits.add(version, given.batch_size, int(generation))
        if rank == 0 and version % SNAPSHOT_EVERY == 0:
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "version": version,
            }
            torch.save(state, f"{snapshot}.new")
            os.replace(f"{snapshot}.new", snapshot)


if __name__ == "__main__":
    main()
