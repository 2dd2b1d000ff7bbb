"""What the peers' processes have in common: the model, its data and the log of committed steps."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch


def dense() -> torch.nn.Module:
    """The benchmark zoo's `dense`, with the same weights in each process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )


def batches(elements: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of numbers and their sums."""
    random = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(elements, 32, generator=random)
        yield x, x.sum(dim=1, keepdim=True)


class Commits:
    """One process's committed steps, a line each: time, version, the step's elements, generation.

    A generation's number is larger than those of all memberships before it.
    """

    def __init__(self, directory: str) -> None:
        # One write for a line: who reads meanwhile sees whole lines, and a kill loses none.
        self._file = open(Path(directory, f"{os.getpid()}.commits"), "ab", buffering=0)  # noqa: SIM115

    def add(self, version: int, elements: int, generation: int) -> None:
        self._file.write(f"{time.time()} {version} {elements} {generation}\n".encode())
