"""Named pipes through which processes tell a test that they are up."""

import asyncio
import os


async def heard(path):
    """All that is written to the pipe `path` until its writers close it; waits in no thread, which
    nothing could end where nobody comes to write.
    """
    loop = asyncio.get_running_loop()
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    text = b""
    try:
        while True:
            ready = asyncio.Event()
            loop.add_reader(pipe, ready.set)
            await ready.wait()
            some = os.read(pipe, 1 << 16)
            if not some:
                return text.decode()
            text += some
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)
