"""One replica of a peer: torchft's DistributedDataParallel over Gloo.

It is started by `benchmarks.elastic`, each replica under a torchrun of its own, as in torchft's
examples; a replica that starts anew receives the weights from another.
"""

import argparse
import os
from datetime import timedelta

import torch
import torchft

from benchmarks import _torch_model


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory")
    arguments.add_argument("--replica", type=int, required=True)
    arguments.add_argument("--share", type=int, required=True, help="Of a step, in elements.")
    arguments.add_argument("--collective_timeout_s", type=float, required=True)
    arguments.add_argument("--heartbeat_s", type=float, required=True)
    given = arguments.parse_args()

    torch.set_num_threads(1)
    module = _torch_model.dense()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def load(state: dict) -> None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])

    def state() -> dict:
        return {"module": module.state_dict(), "optimizer": optimizer.state_dict()}

    manager = torchft.Manager(
        pg=torchft.ProcessGroupGloo(timeout=timedelta(seconds=given.collective_timeout_s)),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        replica_id=f"replica_{given.replica}",
        heartbeat_interval=timedelta(seconds=given.heartbeat_s),
        hostname="localhost",
        timeout=timedelta(seconds=30),
    )
    model = torchft.DistributedDataParallel(manager, module)
    wrapped = torchft.Optimizer(manager, optimizer)
    commits = _torch_model.Commits(given.directory)
    for x, y in _torch_model.batches(given.share, seed=os.getpid()):
        wrapped.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        before = manager.current_step()
        wrapped.step()
        if manager.current_step() > before:
            # The number of the quorum has no public name.
            quorum = manager._quorum_id
            elements = manager.num_participants() * given.share
            commits.add(manager.current_step(), elements, quorum)


if __name__ == "__main__":
    main()
