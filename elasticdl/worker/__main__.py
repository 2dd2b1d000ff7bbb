"""The worker's process: `python -m elasticdl.worker MASTER NAME`."""

import os
import signal
import sys
import traceback
from typing import NoReturn

from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import heartbeat


def work(address: str, worker: str, *, in_process: bool = False) -> int:
    """Does one worker's part of the job whose master is at `address`; returns an exit status."""
    client = rpc.Client(address)
    registered = client.call("Register", pb.RegisterRequest(worker=worker, pid=os.getpid()))
    beat = heartbeat.Heartbeat(client, worker, heartbeat.leave_process)
    try:
        # TensorFlow takes seconds to import; the master already hears this worker's heart.
        from elasticdl.worker import session

        session.Session(client, worker, registered, beat).run()
    except Cancelled:
        return 0
    except UserError as error:
        kind = "user_code" if isinstance(error, UserCodeError) else "user"
        _fail(client, beat, worker, kind, str(error), getattr(error, "trace", ""))
        return 2
    except Exception as error:
        trace = traceback.format_exc()
        sys.stderr.write(trace)
        _fail(client, beat, worker, "bug", f"{type(error).__name__}: {error}", trace)
        return 1
    finally:
        if in_process:
            beat.close()
    return 0


def _fail(
    client: rpc.Client, beat: heartbeat.Heartbeat, worker: str, kind: str, message: str, trace: str
) -> None:
    beat.flush()
    client.call("Fail", pb.FailRequest(worker=worker, kind=kind, message=message, trace=trace))


def _leave(number: int, frame: object) -> NoReturn:
    del frame
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    status = work(*sys.argv[1:3])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of TensorFlow and Gloo have nothing left to do, and may wait for peers that are gone.
    os._exit(status)
