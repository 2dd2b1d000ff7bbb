"""Lets a process without a GPU take part in a group of NCCL's: its GPU is its memory, and Gloo
carries what NCCL is told to."""

import datetime
import types

import torch
import torch.distributed
from torch._C._distributed_c10d import ErrorType

from elasticdl.worker import transport


class Nccl:
    """What `transport.Nccl` uses of torch's ProcessGroupNCCL."""

    last = None  # made in this process
    Options = lambda: types.SimpleNamespace(config=types.SimpleNamespace())  # noqa: E731

    def __init__(self, store, rank, size, options):
        gloo = torch.distributed.ProcessGroupGloo
        inner = gloo._Options()
        inner._devices = [gloo.create_device(hostname="127.0.0.1", lazy_init=False)]
        inner._timeout = datetime.timedelta(seconds=10)
        self._make = lambda: gloo(store, rank, size, inner)
        self._error = ErrorType.SUCCESS
        self.aborted = False
        assert options.config.blocking is False
        Nccl.last = self

    def eager_connect_single_device(self, device):
        assert device == torch.device("cpu")
        self._gloo = self._make()

    def allreduce(self, buffers, options):
        return Work(self, self._gloo.allreduce(buffers, options))

    def broadcast(self, buffers, options):
        return Work(self, self._gloo.broadcast(buffers, options))

    def get_error(self):
        return self._error

    def failed(self):
        self._error = ErrorType.REMOTE_ERROR

    def abort(self):
        self.aborted = True


class Work:
    """NCCL says nothing of errors here: its group does."""

    def __init__(self, group, work):
        self._group = group
        self._work = work

    def is_completed(self):
        if not self._work.is_completed():
            return False
        try:
            self._work.wait()
        except RuntimeError:
            self._group.failed()
            return False
        return True

    def wait(self):
        self._work.wait()


def pretend():
    torch.distributed.ProcessGroupNCCL = Nccl
    transport._gpu = lambda: torch.device("cpu")
    torch.accelerator.synchronize = lambda device: None
