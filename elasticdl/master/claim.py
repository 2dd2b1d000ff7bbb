"""An output has one writer: the claim that says which."""

import contextlib
import fcntl
import json
import os
from pathlib import Path

from elasticdl.errors import UserError


class Taken(UserError):
    """Another job has the output."""


class Claim:
    """The right to write one output, held until `release` or until the process dies.

    The file names the owner for the message that others get; the lock on it is what counts, so a
    dead owner's claim is free at once.

    Args:
        path: the claim's file; its directory exists.
        output: the output, for the message.
        job_name: the job that wants it.

    Raises:
        Taken: another job has it.
        FileNotFoundError: the directory is no more, because its last owner has just left.
    """

    def __init__(self, path: Path, output: str, job_name: str) -> None:
        self._path = path
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(descriptor)
                os.close(descriptor)
                raise Taken(
                    f"output: {output} is being written by {owner}. Wait for it, stop it, or "
                    "choose another --output."
                ) from None
            # The owner before us may have removed the file between our open and our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    break
            os.close(descriptor)
        self._descriptor = descriptor
        text = json.dumps({"job_name": job_name, "pid": os.getpid(), "host": os.uname().nodename})
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Removes the file and lets others have the output."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"job {owner['job_name']} (process {owner['pid']} on {owner['host']})"
    except (ValueError, KeyError, TypeError):
        return "another job"
