"""A step of all members: alone without a collective, together with one all-reduce."""

import time
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from elasticdl.core import progress
from elasticdl.data import pipeline
from elasticdl.worker import loop, replica

if TYPE_CHECKING:
    import torch

    from elasticdl.worker import group


class Alone:
    """A generation of one member.

    Attributes:
        computed_s: spent on steps.
        waited_s: spent on others; 0.
    """

    alone = True
    waited_s = 0.0

    def __init__(self, replica: replica.Replica, *, reproducible: bool) -> None:
        self._replica = replica
        self._reproducible = reproducible
        self.computed_s = 0.0

    def step(
        self, batch: pipeline.Batch, at: progress.Progress, regroup: bool
    ) -> tuple[replica.Outcome, progress.Tail]:
        began = time.perf_counter()
        tail = progress.Tail(batch.used, int(regroup))
        outcome = self._outcome(batch, at)
        self.computed_s += time.perf_counter() - began
        return outcome, tail

    def _outcome(self, batch: pipeline.Batch, at: progress.Progress) -> replica.Outcome:
        if not batch.elements:
            return replica.Outcome(0, 0.0, {}, False)
        if not self._reproducible:
            return self._replica.alone(batch, at.version)
        summands = self._replica.summands(batch, at.version)
        maxima = self._replica.maxima(summands)
        total = self._replica.exact_sum(summands, maxima, len(at.cursors))
        return self._replica.apply(total, total[self._replica.layout.rest :], batch.elements)

    def total(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums


class Together:
    """A generation of several members, joined by `group`; `on_gpu` says that it carries what is on
    their GPUs.

    Attributes:
        computed_s: spent from the beginnings of steps until their gradients were there to be
            reduced, without what was waited in between.
        waited_s: spent in collectives.
    """

    alone = False

    def __init__(
        self,
        replica: replica.Replica,
        group: "group.Group",
        *,
        reproducible: bool,
        on_gpu: bool = False,
    ) -> None:
        self._replica = replica
        self._group = group
        self._reproducible = reproducible
        self._on_gpu = on_gpu
        self.computed_s = 0.0
        self.waited_s = 0.0

    def step(
        self, batch: pipeline.Batch, at: progress.Progress, regroup: bool
    ) -> tuple[replica.Outcome, progress.Tail]:
        import torch

        began = time.perf_counter() - self.waited_s
        streams = len(at.cursors)
        length, begin = self._replica.layout.length, self._replica.layout.rest
        # One memory for TensorFlow and torch: nothing is copied on the way to the wire and back.
        if self._reproducible:
            summands = self._replica.summands(batch, at.version)
            maxima = self._replica.maxima(summands)
            self._reduce(torch.from_numpy(maxima), maximum=True)
            buffer = torch.from_numpy(self._replica.exact_sum(summands, maxima, streams))
        else:
            flat = self._replica.gradients(batch, at.version)
            if self._on_gpu:
                tf.test.experimental.sync_devices()  # torch does not wait for it
            elif "GPU" in flat.device:
                with tf.device("CPU"):
                    flat = tf.identity(flat)
            buffer = torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(flat))
        rest = buffer[begin:].cpu()  # the same memory, unless it is a GPU's
        numbers = rest.numpy()
        numbers[length - begin :] = progress.encode(batch.used, regroup, streams)
        if buffer.is_cuda:
            buffer[begin:].copy_(rest)
        self.computed_s += time.perf_counter() - self.waited_s - began
        self._reduce(buffer)
        if buffer.is_cuda:
            rest.copy_(buffer[begin:])
        tail = progress.decode(numbers[length - begin :].tolist(), batch.used)
        elements = sum(used.elements for used in tail.used.values())
        summed = tf.experimental.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(buffer))
        return self._replica.apply(summed, numbers, elements), tail

    def total(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        import torch

        buffer = torch.from_numpy(sums.copy())
        self._reduce(buffer)
        total: NDArray[np.float64] = buffer.numpy()
        return total

    def _reduce(self, buffer: "torch.Tensor", *, maximum: bool = False) -> None:
        from elasticdl.worker import group

        began = time.perf_counter()
        try:
            self._group.all_reduce(buffer, group.MAX if maximum else group.SUM)
        except group.Broken as error:
            raise loop.GivenUp(str(error)) from error
        finally:
            self.waited_s += time.perf_counter() - began
