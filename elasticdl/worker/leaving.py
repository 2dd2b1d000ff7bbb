"""How a worker takes its leave: of a master that goes on, or of a job that has none."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from elasticdl.errors import UserCodeError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc
from elasticdl.worker import heartbeat

_LEAVE_S = 2.0


class Leaver:
    """Says good-bye for one worker.

    Args:
        end_process: from the reason and an exit status; does not return.

    Attributes:
        save: writes a checkpoint of the replica, unless there is one as new or there is no replica;
            to be set by who has it.
    """

    def __init__(
        self,
        client: rpc.Client,
        worker: str,
        end_process: Callable[[str, int], None] = heartbeat.end_process,
    ) -> None:
        self._client = client
        self._worker = worker
        self._end_process = end_process
        # Whose turn it is to do anything with the replica.
        self._turn = threading.Lock()
        self._attempts = 0
        self.save: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside, the replica may change: nobody saves it, and no end comes, except a late one."""
        with self._turn:
            yield

    def end(self, reason: str, late: bool = False) -> None:
        """Ends this process, so that nobody waits for it and nothing that it alone has is lost.

        Args:
            late: at once, whatever the main thread is at; its replica may be changing, and is left
                to the others, or to the last checkpoint.
        """
        # Whoever comes second has nothing to do but to wait for the end.
        with contextlib.nullcontext() if late else self._turn:
            try:
                self._say_good_bye(reason, saves=not late)
            finally:
                self._end_process(reason, 0)

    def hang(self, reason: str, trace: str) -> None:
        """Reports as a failure that the main thread stands still, and ends this process.

        Args:
            trace: where it stands.
        """
        self._attempts += 1
        request = pb.FailRequest(
            worker=self._worker,
            kind="user_code",
            message=f"{self._worker} hangs: {reason}",
            trace=trace,
            phase="member",
            attempt=self._attempts,
        )
        try:
            self._client.call("Fail", request, deadline_s=_LEAVE_S)
        finally:
            self._end_process(reason, 1)

    def _say_good_bye(self, reason: str, *, saves: bool) -> None:
        request = pb.LeaveRequest(worker=self._worker, reason=reason)
        try:
            if self._client.call("Leave", request, deadline_s=_LEAVE_S).save and saves:
                self.save()
                request.saved = True
                self._client.call("Leave", request, deadline_s=_LEAVE_S)
        except rpc.Unreachable:
            if saves:
                # Without a master nobody knows who else has a replica.
                self.save()

    def again(self, beat: heartbeat.Heartbeat, error: UserCodeError, phase: str) -> bool:
        """Reports what the user's code raised; whether this worker is to try again.

        Without a master nobody says that it is not.
        """
        self._attempts += 1
        try:
            return self.fail(beat, "user_code", str(error), error.trace, error.slices, phase)
        except rpc.Unreachable:
            return True

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
