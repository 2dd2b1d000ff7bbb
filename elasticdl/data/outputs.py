"""Outputs: what their parts are called, and what the system says about writing them, for users."""

import contextlib
import errno
from collections.abc import Iterator

from elasticdl.errors import UserError

_HINTS = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EEXIST: "A directory is expected there",
    errno.ENOTDIR: "A directory is expected there",
}


@contextlib.contextmanager
def writing(output: str) -> Iterator[None]:
    """Turns what the operating system says about writing the output into a `UserError`."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "Make it writable")
        raise UserError(
            f"output: {output or 'the temporary directory'} cannot be written: "
            f"{error.strerror or error} ({error.filename or output}). {hint}, or choose another "
            "--output."
        ) from error


def part_name(number: int, slices: int) -> str:
    """The file name of the predictions for slice `number` of `slices`."""
    return f"part-{number:05d}-of-{slices:05d}.recordio"
