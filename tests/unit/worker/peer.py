"""A member in a process of its own, which does what it reads from standard input."""

import json
import os
import signal
import sys

import torch

from elasticdl.core import membership
from elasticdl.worker import group


def main() -> None:
    joined = None
    meeting = group.Meeting("127.0.0.1")
    say({"meeting": meeting.address})
    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "join":
                joined = group.Group(
                    membership.Generation(
                        order["number"], tuple(order["members"]), rendezvous=order["rendezvous"]
                    ),
                    order["rank"],
                    "127.0.0.1",
                    lambda: False,
                )
            case "sum" | "max":
                buffer = torch.tensor(order["numbers"], dtype=torch.float64)
                operation = group.SUM if order["do"] == "sum" else group.MAX
                joined.all_reduce(buffer, operation)
                say({"numbers": buffer.tolist()})
            case "broadcast":
                content = order["content"]
                given = None if content is None else content.encode()
                say({"content": joined.broadcast(given, order["source"]).decode()})
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)


def say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
