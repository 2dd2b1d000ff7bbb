"""The master's process: reads the job from standard input, says its address on standard output."""

import asyncio
import contextlib
import json
import os
import signal
import sys

from elasticdl.config import JobConfig
from elasticdl.core import job
from elasticdl.errors import UserError
from elasticdl.master import loop, service
from elasticdl.wire import rpc

_LINGER_S = 30.0  # for the command to ask how the job ended


def _say(**message: str) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _main() -> int:
    order = json.loads(sys.stdin.readline())
    config = JobConfig.from_json(order["config"])
    try:
        master = loop.Loop(config, start_workers=order["start_workers"])
    except UserError as error:
        _say(error=str(error))
        return 2
    server, master.address = await rpc.serve(service.Service(master))
    events = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(
            number, lambda: master.post(job.StopAsked("The master was told to stop."))
        )

    heard = asyncio.Event()

    # Standard input stays open as long as the command that started the job lives.
    def command_gone() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            events.remove_reader(sys.stdin.fileno())
            heard.set()
            master.post(job.StopAsked("The command that started the job is gone."))

    events.add_reader(sys.stdin.fileno(), command_gone)
    _say(address=master.address)
    await master.run()
    # The command closes our standard input once it has seen how the job ended.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(heard.wait(), _LINGER_S)
    await server.stop(grace=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
