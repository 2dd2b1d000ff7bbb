"""TensorBoard event files, written without TensorFlow."""

# TensorBoard's and tensorboardX's own writers import TensorFlow or torch where they are installed,
# which costs the master seconds and hundreds of megabytes.

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

from elasticdl.wire import tensorboard_pb2


class Writer:
    """Appends scalars to one new event file in `directory`, which is made if need be."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}.{os.getpid()}"
        self._file = (directory / name).open("ab")
        self._append(tensorboard_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each of these curves; they are on disk when this returns."""
        summary = tensorboard_pb2.Summary(
            value=[
                tensorboard_pb2.Scalar(tag=tag, simple_value=value) for tag, value in values.items()
            ]
        )
        self._append(tensorboard_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: tensorboard_pb2.Event) -> None:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._file.write(length + _masked(length) + content + _masked(content))
        self._file.flush()


def _masked(content: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C, rotated and offset (tensorflow/core/lib/hash/crc32c.h)."""
    checksum = google_crc32c.value(content)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)
