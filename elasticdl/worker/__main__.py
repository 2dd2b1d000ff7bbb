"""The worker's process: `python -m elasticdl.worker MASTER NAME [SECURITY]`."""

import os
import signal
import sys
import traceback
from pathlib import Path

from elasticdl.config import JobConfig
from elasticdl.errors import Cancelled, UserCodeError, UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import heartbeat, leaving

_REGISTER_S = 60.0


def work(where: str, worker: str, security: str = "", *, in_process: bool = False) -> int:
    """Does one worker's part of the job whose master is found at `where`, an address or the path
    of a locator; returns an exit status.

    Args:
        security: directory of what this worker shows the master; empty: they do without.
    """
    client = rpc.Client(where, rpc.Security.read(security) if security else None)
    registered = client.call(
        "Register", pb.RegisterRequest(worker=worker, pid=os.getpid()), deadline_s=_REGISTER_S
    )
    config = JobConfig.from_json(registered.config)
    leaver = leaving.Leaver(client, worker)
    beat = heartbeat.Heartbeat(
        client,
        worker,
        leaver.end,
        grace_s=config.grace_s,
        orphan_s=config.orphan_s,
        hangs=leaver.hang,
        hang_s=config.hang_s,
    )
    if not in_process:
        signal.signal(
            signal.SIGTERM, lambda number, frame: beat.leave("it was told to end by SIGTERM")
        )
    try:
        # TensorFlow takes seconds to import; the master already hears this worker's heart.
        from elasticdl.worker import session

        session.Session(
            client, worker, registered, beat, leaver, Path(security) if security else None
        ).run()
    except Cancelled:
        return 0
    except UserError as error:
        kind = "user_code" if isinstance(error, UserCodeError) else "user"
        leaver.fail(beat, kind, str(error), getattr(error, "trace", ""))
        return 2
    except Exception as error:
        trace = traceback.format_exc()
        sys.stderr.write(trace)
        leaver.fail(beat, "bug", f"{type(error).__name__}: {error}", trace)
        return 1
    finally:
        if in_process:
            beat.close()
    return 0


if __name__ == "__main__":
    status = work(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of TensorFlow and Gloo have nothing left to do, and may wait for peers that are gone.
    os._exit(status)
