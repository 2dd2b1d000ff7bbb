"""A member in a process of its own, which does what it reads from standard input."""

import json
import os
import signal
import sys

import torch

from elasticdl.core import membership
from elasticdl.worker import group, transport


def main() -> None:
    joined = None
    meeting = group.Meeting("127.0.0.1")
    say({"meeting": meeting.address})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            match order["do"]:
                case "join":
                    signal_on_the_way = order["signal_on_the_way"]
                    if signal_on_the_way:
                        transport._Exchange.get = lambda *_, number=signal_on_the_way: os.kill(
                            os.getpid(), number
                        )
                    joined = group.Group(
                        membership.Generation(
                            order["number"], tuple(order["members"]), rendezvous=order["rendezvous"]
                        ),
                        order["rank"],
                        "127.0.0.1",
                        lambda: False,
                        term=order["term"],
                    )
                case "sum" | "max":
                    buffer = torch.tensor(order["numbers"], dtype=torch.float64)
                    operation = group.SUM if order["do"] == "sum" else group.MAX
                    joined.all_reduce(buffer, operation)
                    say({"numbers": buffer.tolist()})
                case "sum ones":
                    joined.all_reduce(torch.ones(order["length"]))
                    say({})
                case "broadcast":
                    content = order["content"]
                    given = None if content is None else content.encode()
                    say({"content": joined.broadcast(given, order["source"]).decode()})
                case "broadcast into":
                    buffer = torch.full([order["length"]], order["value"], dtype=torch.uint8)
                    joined.broadcast_into(buffer, order["source"])
                    say({"values": [int(buffer.min()), int(buffer.max())]})
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
        except group.Broken as error:
            say({"broken": str(error)})


def say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
