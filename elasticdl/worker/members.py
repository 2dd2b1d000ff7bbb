"""A step of all members: alone without a collective, together with one all-reduce."""

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
    """A generation of one member."""

    alone = True

    def __init__(self, replica: replica.Replica, *, reproducible: bool) -> None:
        self._replica = replica
        self._reproducible = reproducible

    def step(
        self, batch: pipeline.Batch, at: progress.Progress, regroup: bool
    ) -> tuple[replica.Outcome, progress.Tail]:
        tail = progress.Tail(batch.used, int(regroup))
        if not batch.elements:
            return replica.Outcome(0, 0.0, {}, False), tail
        if not self._reproducible:
            return self._replica.alone(batch, at.version), tail
        gradients = self._replica.gradients(batch, at.version).numpy()
        maxima = self._replica.maxima(gradients)
        total = self._replica.exact_sum(gradients, maxima, len(at.cursors))
        rest = total[self._replica.layout.rest :]
        return self._replica.apply(tf.convert_to_tensor(total), rest, batch.elements), tail

    def total(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums


class Together:
    """A generation of several members, joined by `group`."""

    alone = False

    def __init__(
        self, replica: replica.Replica, group: "group.Group", *, reproducible: bool
    ) -> None:
        self._replica = replica
        self._group = group
        self._reproducible = reproducible

    def step(
        self, batch: pipeline.Batch, at: progress.Progress, regroup: bool
    ) -> tuple[replica.Outcome, progress.Tail]:
        import torch

        streams = len(at.cursors)
        length, begin = self._replica.layout.length, self._replica.layout.rest
        gradients = self._replica.gradients(batch, at.version)
        if self._reproducible:
            rows = gradients.numpy()
            maxima = torch.from_numpy(self._replica.maxima(rows))
            self._reduce(maxima, maximum=True)
            sums = self._replica.exact_sum(rows, maxima.numpy(), streams)
            flat = tf.convert_to_tensor(sums)
        else:
            flat = gradients
        # One memory for TensorFlow and torch: nothing is copied on the way to the wire and back.
        buffer = torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(flat))
        buffer[length:].numpy()[:] = progress.encode(batch.used, regroup, streams)
        self._reduce(buffer)
        numbers = buffer[begin:].numpy()
        tail = progress.decode(numbers[length - begin :].tolist())
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

        try:
            self._group.all_reduce(buffer, group.MAX if maximum else group.SUM)
        except group.Broken as error:
            raise loop.GivenUp(str(error)) from error
