"""The master's process on a user's machine: reads the job from standard input, says its address on
standard output. With two arguments, it is that of a pod: see `elasticdl.master.pod`.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys

from elasticdl.cluster import registry
from elasticdl.config import JobConfig
from elasticdl.errors import UserError
from elasticdl.master import loop, places, service
from elasticdl.wire import rpc

_LINGER_S = 30.0  # for the command to ask how the job ended
_WATCH_S = 1.0  # those who have asked within that time ask again


def _say(**message: str) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _main() -> int:
    order = json.loads(sys.stdin.readline())
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format='{"time": "%(asctime)s", "level": "%(levelname)s", "text": "%(message)s"}',
    )
    config = JobConfig.from_json(order["config"])
    try:
        master = loop.Loop(
            config, start_workers=order["start_workers"], again=order.get("again", "")
        )
    except UserError as error:
        _say(error=str(error))
        return 2
    answers = service.Service(master)
    server, master.address = await rpc.serve(answers)
    locator = str(master.places.locator)
    try:
        rpc.write_locator(locator, master.address, master.term)
    except OSError as error:
        if master.places.beginning in (places.Beginning.ANEW, places.Beginning.RESUME):
            # Otherwise there is what another master has left, and goes on from.
            master.places.discard()
        await server.stop(grace=None)
        _say(error=f"output: {locator} cannot be written: {error.strerror or error}.")
        return 2
    name = master.config.job_name
    registry.add(name, locator, master.config, os.environ)
    events = asyncio.get_running_loop()
    # Whoever ends a master does not end the job: the next one takes over.
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, master.release)

    heard = asyncio.Event()

    # Standard input stays open as long as the command that started the job lives. Without it, the
    # workers train on for orphan_s; the same command takes them over.
    def command_gone() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            events.remove_reader(sys.stdin.fileno())
            heard.set()
            master.release()

    events.add_reader(sys.stdin.fileno(), command_gone)
    _say(address=master.address, job_name=name, work=str(master.places.work))
    await master.run()
    if master.superseded:
        # At once, with the claim: the next master waits for it, and calls that wait for an answer
        # find that one by the broken connection.
        os._exit(0)
    registry.remove(name, locator, os.environ)
    # The command closes our standard input once it has seen how the job ended.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(heard.wait(), _LINGER_S)
    # `elasticdl job stop` waits for the end of another command's job.
    while answers.watched(_WATCH_S):
        await asyncio.sleep(0.02)
    await server.stop(grace=1.0)
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        # It brings the client of Kubernetes.
        from elasticdl.master import pod

        asyncio.run(pod.main(*sys.argv[1:3]))
    sys.exit(asyncio.run(_main()))
