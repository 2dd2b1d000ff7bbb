"""What carries the collectives of one group: Gloo between processes, NCCL between their GPUs."""

import contextlib
import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed

from elasticdl.worker import meeting

# How soon it is noticed that a generation was given up; to look costs 0.2 ms.
SLICE_S = 0.01
_SLICE = datetime.timedelta(seconds=SLICE_S)
# Once all have met, they are connected in milliseconds.
_CONNECT = datetime.timedelta(seconds=10)
# Members wait for each other as long as the master counts on them all: one may have more to do.
_PATIENCE = datetime.timedelta(days=30)
# For what follows at once when all have come.
_TRANSFER = datetime.timedelta(minutes=10)

# An operation that has this number is waited for by nobody.
_NOBODYS_TAG = 0x7FFF0001
_MOMENT = datetime.timedelta(milliseconds=1)
_LOOK_S = 0.0001  # between two looks at a GPU

_TLS = {
    "GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY": "tls.key",
    "GLOO_DEVICE_TRANSPORT_TCP_TLS_CERT": "tls.crt",
    "GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_FILE": "ca.crt",
}
_READ = 1 << 20  # bytes


class Transport(Protocol):
    """The connected members of one group. What fails raises RuntimeError."""

    def all_reduce(self, buffer: torch.Tensor, operation: Any) -> Any:
        """Begins; returns what `finished` and `end` are to be given."""
        ...

    def broadcast(self, buffer: torch.Tensor, source: int) -> Any:
        """Begins, as `all_reduce`."""
        ...

    def finished(self, work: Any) -> bool:
        """Whether the operation has, after a moment.

        Raises:
            RuntimeError: it has failed.
        """
        ...

    def end(self, work: Any) -> None:
        """Breaks all connections, and waits for the operation (None: there is none), which may
        never finish by itself.
        """
        ...


# Connects: the members have met, this one's rank, how many they are, the address that others reach.
Connect = Callable[[meeting.Visit, int, int, str], Transport]


def encrypt(security: Path) -> bool:
    """Has Gloo speak TLS in this process from now on; whether this build of torch can.

    Args:
        security: directory with tls.key, tls.crt and ca.crt.
    """
    # To try would be to decide: what Gloo has once read of its settings stays. A build that can
    # knows this name.
    if not _contains(Path(torch.__file__).parent / "lib", next(iter(_TLS)).encode()):
        return False
    os.environ |= {name: str(security / file) for name, file in _TLS.items()}
    os.environ["GLOO_DEVICE_TRANSPORT"] = "TCP_TLS"
    return True


def _contains(libraries: Path, word: bytes) -> bool:
    for library in sorted(libraries.glob("*torch_cpu*")):
        with library.open("rb") as file:
            before = b""
            while piece := file.read(_READ):
                if word in before + piece:
                    return True
                before = piece[-len(word) :]
    return False


class Gloo:
    """Between processes, over TCP."""

    def __init__(self, visit: meeting.Visit, rank: int, size: int, host: str) -> None:
        gloo = torch.distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host, lazy_init=False)]
        options._timeout = _CONNECT
        self._group: Any = gloo(_Exchange(visit), rank, size, options)
        self._others = [other for other in range(size) if other != rank]

    def all_reduce(self, buffer: torch.Tensor, operation: Any) -> Any:
        return self._group.allreduce([buffer], _all_reduce(operation))

    def broadcast(self, buffer: torch.Tensor, source: int) -> Any:
        return self._group.broadcast([buffer], _broadcast(source))

    def finished(self, work: Any) -> bool:
        try:
            work.wait(_SLICE)
        except RuntimeError:
            if not work.is_completed():
                return False
            work.wait()  # raises, unless it was completed just after the slice
        return True

    def end(self, work: Any) -> None:
        # Gloo closes all connections, and so ends all operations, when anything takes too long.
        for rank in self._others:
            with contextlib.suppress(RuntimeError):
                self._group.recv([torch.empty(1)], rank, _NOBODYS_TAG).wait(_MOMENT)
        if work is not None:
            # All but a send under way: that lasts for as long as it may. To destroy the group
            # earlier would wait for it.
            with contextlib.suppress(RuntimeError):
                work.wait(_PATIENCE)


class _Exchange(torch.distributed.Store):  # type: ignore[misc]
    """A meeting as Gloo asks for it: each member sets one key and waits for those of all."""

    def __init__(self, visit: meeting.Visit) -> None:
        super().__init__()
        self._visit = visit
        self._said: dict[str, bytes] | None = None

    def set(self, key: str, value: bytes) -> None:
        self._visit.say(key, value)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        del keys, timeout
        if self._said is None:
            self._said = self._visit.hear()

    def get(self, key: str) -> bytes:
        self.wait([key])
        assert self._said is not None
        return self._said[key]


class Nccl:
    """Between the GPUs of processes that have one each. Buffers may be anywhere; those that are on
    the GPU are not copied.
    """

    def __init__(self, visit: meeting.Visit, rank: int, size: int, host: str) -> None:
        # What fails is to be told here; by itself torch would end the process.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", f"{_CONNECT.total_seconds():g}")
        nccl = torch.distributed.ProcessGroupNCCL
        options = nccl.Options()
        options.config.blocking = False
        options._timeout = _PATIENCE
        self._device = _gpu()
        self._group: Any = nccl(_store(visit, rank, host), rank, size, options)
        self._group.eager_connect_single_device(self._device)

    def all_reduce(self, buffer: torch.Tensor, operation: Any) -> "_Copied":
        there = buffer.to(self._device)
        return _Copied(self._group.allreduce([there], _all_reduce(operation)), there, buffer)

    def broadcast(self, buffer: torch.Tensor, source: int) -> "_Copied":
        there = buffer.to(self._device)
        return _Copied(self._group.broadcast([there], _broadcast(source)), there, buffer)

    def finished(self, work: "_Copied") -> bool:
        error = self._group.get_error()
        if error != torch._C._distributed_c10d.ErrorType.SUCCESS:
            raise RuntimeError(f"NCCL: {error.name}")
        if not work.work.is_completed():
            time.sleep(_LOOK_S)
            return False
        work.work.wait()
        if work.there is not work.buffer:
            work.buffer.copy_(work.there)
        # Others than torch read the buffer next.
        torch.accelerator.synchronize(self._device)
        return True

    def end(self, work: "_Copied | None") -> None:
        del work  # it ends with the group
        self._group.abort()


class _Copied:
    """An operation on `there`, which is `buffer` or stands for it on the GPU."""

    def __init__(self, work: Any, there: torch.Tensor, buffer: torch.Tensor) -> None:
        self.work = work
        self.there = there
        self.buffer = buffer


def _gpu() -> torch.device:
    """This process's own."""
    return torch.device("cuda", torch.cuda.current_device())


def _store(visit: meeting.Visit, rank: int, host: str) -> torch.distributed.Store:
    """The store of rank 0, of which the members have heard at their meeting."""
    own = None
    if rank == 0:
        own = torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    visit.say(str(rank), f"{host}:{own.port}".encode() if own is not None else b"")
    where, _, port = visit.hear()["0"].decode().rpartition(":")
    if own is not None:
        return own
    return torch.distributed.TCPStore(
        where, int(port), is_master=False, timeout=_CONNECT, wait_for_workers=False
    )


def _all_reduce(operation: Any) -> Any:
    options = torch.distributed.AllreduceOptions()
    options.reduceOp = operation
    options.timeout = _PATIENCE
    return options


def _broadcast(source: int) -> Any:
    options = torch.distributed.BroadcastOptions()
    options.rootRank = source
    options.timeout = _TRANSFER
    return options
