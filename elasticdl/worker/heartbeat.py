"""What a worker tells the master all the time, and what it hears back."""

import os
import threading
from collections.abc import Callable, Mapping

from elasticdl.core.progress import Progress
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc

_EVERY_S = 0.2
_MOST_REPORTS = 1000


class Heartbeat:
    """Reports to the master from a thread of its own until `close`.

    Args:
        orphaned: called once if the master has not answered for `orphan_s` seconds.
    """

    def __init__(
        self,
        client: rpc.Client,
        worker: str,
        orphaned: Callable[[], None],
        orphan_s: float = 5.0,
    ) -> None:
        self._client = client
        self._orphaned = orphaned
        self._orphan_s = orphan_s
        self._next = pb.HeartbeatRequest(worker=worker, phase="starting")
        self._progress: Progress | None = None
        self._steps: list[pb.StepReport] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self.regroup = False
        self.stop = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def phase(self, phase: str) -> None:
        with self._lock:
            self._next.phase = phase

    def stands(self, generation: int, progress: Progress) -> None:
        """Where the replica stands."""
        with self._lock:
            self._next.generation = generation
            self._progress = progress

    def committed(self, report: pb.StepReport, learning_rate: float, *, speaks: bool) -> None:
        """A line of the training's history; the member that `speaks` sends it and those that
        were kept before.
        """
        with self._lock:
            self._steps.append(report)
            del self._steps[:-_MOST_REPORTS]
            if speaks:
                self._next.learning_rate = learning_rate
                self._next.steps.extend(self._steps)
                self._steps.clear()

    def evaluated(
        self, version: int, elements: int, metrics: Mapping[str, messages.Metric]
    ) -> None:
        report = pb.EvaluationReport(
            version=version, elements=elements, metrics=messages.metric_messages(metrics)
        )
        with self._lock:
            self._next.evaluations.append(report)

    def notice(self, text: str) -> None:
        """Something that the user should read once."""
        with self._lock:
            self._next.notices.append(text)

    def flush(self) -> None:
        """Sends what there is now.

        Raises:
            rpc.Unreachable
        """
        self._send()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            try:
                self._send()
            except rpc.Unreachable:
                if not self._closed:
                    self._orphaned()
                return
            self._wake.wait(_EVERY_S)

    def _send(self) -> None:
        with self._lock:
            request = pb.HeartbeatRequest()
            request.CopyFrom(self._next)
            progress = self._progress
            del self._next.steps[:], self._next.evaluations[:], self._next.notices[:]
        if progress is not None:
            request.progress.CopyFrom(messages.progress_message(progress))
        reply = self._client.call("Heartbeat", request, deadline_s=self._orphan_s)
        self.regroup = reply.regroup
        self.stop = reply.stop


def leave_process() -> None:
    """Ends this process at once: nobody is there to work for."""
    os._exit(3)
