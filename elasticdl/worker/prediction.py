"""Leases → part files of predictions."""

import threading
from pathlib import Path

import numpy as np
import tensorflow as tf

from elasticdl.core import streams
from elasticdl.data import examples, outputs, pipeline, recordio
from elasticdl.errors import UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import heartbeat, leaving, replica

_WAIT_S = 0.1


class Predictor:
    """Predicts slices.

    Args:
        copy: prepared for prediction.
        batch_size: elements computed at a time.
    """

    def __init__(
        self,
        plan: streams.Plan,
        opener: pipeline.Opener,
        copy: replica.Replica,
        batch_size: int,
    ) -> None:
        self.plan = plan
        self._opener = opener
        self._replica = copy
        self._batch_size = batch_size

    def where(self, number: int) -> str:
        """The slice in words."""
        return self._opener.where(self.plan.slice(number))

    def write(self, number: int, path: Path) -> int:
        """Writes the predictions of one slice as RecordIO of tf.Example; returns how many.

        Doing it again writes the same file.
        """
        slice_ = self.plan.slice(number)
        rows = 0
        with recordio.Writer(str(path)) as writer:
            for block in self._opener.blocks(slice_, 0):
                batch = pipeline.Batch(block.components, (block.elements,), {}, {})
                for begin in range(0, block.elements, self._batch_size):
                    end = min(begin + self._batch_size, block.elements)
                    predicted = self._replica.predict(pipeline.part_of(batch, begin, end))
                    for name, values in predicted.items():
                        if values.ndim == 0 or len(values) != end - begin:
                            raise UserError(
                                f"model: expected one row of output {name!r} for each of "
                                f"{end - begin} elements; got shape {list(values.shape)}."
                            )
                    columns = {name: _storable(values) for name, values in predicted.items()}
                    for record in examples.encode(columns):
                        writer.write(record)
                    rows += end - begin
        return rows


def run(
    client: rpc.Client,
    worker: str,
    predictor: Predictor,
    directory: Path,
    beat: heartbeat.Heartbeat,
    leaver: leaving.Leaver,
) -> None:
    """Predicts what the master leases, part by part, until nothing is left or this worker is to
    end.
    """
    done: list[pb.Done] = []
    pause = threading.Event()
    while not beat.stop:
        beat.alive()
        if beat.orphaned:
            leaver.end("no master was heard from")
        try:
            reply = client.call("Lease", pb.LeaseRequest(worker=worker, done=done))
        except rpc.Unreachable:
            continue  # the next master shall hear of what is done
        done = []
        if reply.finished:
            return
        if beat.leaving:
            # What it was leased is given back as it leaves.
            leaver.end(beat.leaving)
        for number in reply.slices:
            if beat.leaving or beat.stop:
                break
            name = outputs.part_name(number, predictor.plan.slices)
            beat.alive()
            try:
                done.append(
                    pb.Done(slice=number, records=predictor.write(number, directory / name))
                )
            except UserCodeError as error:
                error.slices = error.slices or (predictor.where(number),)
                if not leaver.again(beat, error, "predicting"):
                    return
        if reply.wait:
            pause.wait(_WAIT_S)


def _storable(values: np.ndarray) -> np.ndarray:
    """Types that a tf.Example holds: float32, int64 or bytes."""
    if values.dtype == tf.bfloat16.as_numpy_dtype or values.dtype == np.float16:
        return values.astype(np.float32)
    return values
