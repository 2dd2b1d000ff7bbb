"""A master in a process of its own: says its address, then what is called, and answers nothing."""

import asyncio
import sys

from elasticdl.wire import elasticdl_pb2_grpc, rpc


class Master(elasticdl_pb2_grpc.MasterServicer):
    async def Join(self, request, context):
        say("Join")
        await asyncio.Event().wait()

    async def Follow(self, request, context):
        say("Follow")
        await asyncio.Event().wait()
        yield


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    server, address = await rpc.serve(Master())
    say(address)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
