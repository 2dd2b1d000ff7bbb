"""How a worker takes its leave: of a master that goes on, or of a job that has none."""

import threading
from collections.abc import Callable

from elasticdl.errors import UserCodeError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import heartbeat

_LEAVE_S = 2.0


class Leaver:
    """Says good-bye for one worker.

    Attributes:
        save: writes a checkpoint of the replica, unless there is one as new or there is no replica;
            to be set by who has it.
    """

    def __init__(self, client: rpc.Client, worker: str) -> None:
        self._client = client
        self._worker = worker
        self._ending = threading.Lock()
        self._attempts = 0
        self.save: Callable[[], None] = lambda: None

    def end(self, reason: str) -> None:
        """Ends this process, so that nobody waits for it and nothing that it alone has is lost.

        The replica must not be changing.
        """
        # Whoever comes second has nothing to do but to wait for the end.
        with self._ending:
            try:
                request = pb.LeaveRequest(worker=self._worker, reason=reason)
                if self._client.call("Leave", request, deadline_s=_LEAVE_S).save:
                    self.save()
                    request.saved = True
                    self._client.call("Leave", request, deadline_s=_LEAVE_S)
            except rpc.Unreachable:
                # Without a master nobody knows who else has a replica.
                self.save()
            heartbeat.end_process(reason)

    def again(self, beat: heartbeat.Heartbeat, error: UserCodeError, phase: str) -> bool:
        """Reports what the user's code raised; whether this worker is to try again.

        Raises:
            rpc.Unreachable
        """
        self._attempts += 1
        return self.fail(beat, "user_code", str(error), error.trace, error.slices, phase)

    def fail(
        self,
        beat: heartbeat.Heartbeat,
        kind: str,
        message: str,
        trace: str,
        slices: tuple[str, ...] = (),
        phase: str = "",
    ) -> bool:
        """Reports a failure; whether this worker is to try again.

        Raises:
            rpc.Unreachable
        """
        beat.flush()
        request = pb.FailRequest(
            worker=self._worker,
            kind=kind,
            message=message,
            trace=trace,
            slices=slices,
            phase=phase or beat.present_phase,
            attempt=self._attempts,
        )
        return bool(self._client.call("Fail", request).again)
