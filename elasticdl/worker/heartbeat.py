"""What a worker tells the master all the time, and what it is told."""

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from elasticdl.core import membership
from elasticdl.core.progress import Progress
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages, rpc

_MOST_REPORTS = 1000
_BEATS_PER_GRACE = 4
_SLOWEST_S = 0.5
_PAUSE_S = 0.05
_LEAVE_S = 20.0  # for a member to come to the end of its step
_BUSY = ("member", "evaluating", "exporting", "predicting")
_STEPS = ("member", "evaluating", "predicting")  # phases in which `alive` is called again and again


class Heartbeat:
    """Reports to the master, and follows its orders, from threads of its own until `close`.

    Args:
        ends: called from a thread of its own, with the reason in words, when this worker is to end
            and its main thread is not at work with others, so that it would not notice; and with
            True, when the main thread has been at work for too long since.
        grace_s: after which a master gives up a worker that it does not hear from.
        orphan_s: after which a worker gives up a master that it does not hear from.
        leave_s: for one that is to leave to come to the end of its step.
        hangs: called from a thread of its own when the main thread has not called `alive` for
            `hang_s` (0: that may take as long as it likes) in the midst of steps: with that in
            words, and the main thread's stack.

    Attributes:
        regroup: a flag to be raised in the next step's tail.
        stop: the job is over, or this worker is lost.
        leaving: why this worker is to leave, in words; empty: it is not.
        orphaned: no master was heard from for `orphan_s`.
    """

    def __init__(
        self,
        client: rpc.Client,
        worker: str,
        ends: Callable[[str, bool], None],
        *,
        grace_s: float = 1.0,
        orphan_s: float = 60.0,
        leave_s: float = _LEAVE_S,
        hangs: Callable[[str, str], None] = lambda reason, trace: None,
        hang_s: float = 0.0,
    ) -> None:
        self._client = client
        self._ends = ends
        self._every_s = min(grace_s / _BEATS_PER_GRACE, _SLOWEST_S)
        self._orphan_s = orphan_s
        self._leave_s = leave_s
        self._hangs = hangs
        self._hang_s = hang_s
        self._alive = time.monotonic()
        self._looked = self._alive
        self._main = threading.get_ident()
        self._next = pb.HeartbeatRequest(worker=worker, phase="starting", pid=os.getpid(), rank=-1)
        self._progress: Progress | None = None
        self._steps: list[pb.StepReport] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        # A signal's handler may put something in while the thread that it interrupts does so, too.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closed = False
        self._heard = time.monotonic()
        self._leaving_since: float | None = None
        self._ended: set[bool] = set()
        self._given_up = 0
        self._stream: rpc.Stream | None = None
        self.regroup = False
        self.stop = False
        self.leaving = ""
        self.orphaned = False
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True)
            for run in (self._report, self._follow)
        ]
        for thread in self._threads:
            thread.start()

    def alive(self) -> None:
        """The main thread works, or waits for others."""
        self._alive = time.monotonic()

    def phase(self, phase: str) -> None:
        self.alive()
        with self._lock:
            changed = self._next.phase != phase
            self._next.phase = phase
        if changed:
            # The master has less patience with some phases than with others.
            self._wake.put(None)

    @property
    def present_phase(self) -> str:
        return self._next.phase

    def joined(self, generation: int, rank: int, streams: Sequence[int]) -> None:
        """This worker's place from now on."""
        with self._lock:
            self._next.generation = generation
            self._next.rank = rank
            del self._next.streams[:]
            self._next.streams.extend(streams)
            self._next.ClearField("pace")

    def stands(self, progress: Progress) -> None:
        """Where the replica stands."""
        self.alive()
        self._progress = progress

    def paced(self, pace: membership.Pace) -> None:
        """What this member has measured since it joined."""
        with self._lock:
            self._next.pace.seconds = pace.seconds
            self._next.pace.elements = pace.elements
            self._next.pace.steps = pace.steps

    def checkpointed(self, report: pb.CheckpointReport) -> None:
        with self._lock:
            self._next.checkpoint.CopyFrom(report)

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
                del self._next.steps[:-_MOST_REPORTS]
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

    def given_up(self, generation: int) -> bool:
        """Whether to wait no longer for the others of this generation; to ask is to be alive."""
        self.alive()
        return self.stop or generation <= self._given_up

    def interrupts_evaluation(self) -> bool:
        """Whether to give up an evaluation, which others begin again; to ask is to be alive."""
        self.alive()
        return bool(self.leaving) or self.orphaned or self.stop

    def leave(self, reason: str) -> None:
        """This worker is to leave, as soon as its work allows; to say so again changes nothing."""
        if self.leaving:
            # A signal that comes again may have interrupted what is below.
            return
        self.leaving = reason
        self._leaving_since = time.monotonic()
        self._wake.put(None)

    def flush(self) -> None:
        """Sends what there is now; waits for the next master if there is none.

        Raises:
            rpc.Unreachable: none came for `orphan_s`.
        """
        self._send(self._orphan_s)

    def close(self) -> None:
        self._closed = True
        self._wake.put(None)
        if self._stream is not None:
            self._stream.cancel()
        for thread in self._threads:
            thread.join()

    def _report(self) -> None:
        while not self._closed:
            try:
                self._send(self._every_s * _BEATS_PER_GRACE)
                self._heard = time.monotonic()
                self.orphaned = False
                stream = self._stream
                if stream is not None and not self._client.leads_to(stream):
                    # An earlier master has no more to say.
                    stream.cancel()
            except rpc.Unreachable:
                self.orphaned = time.monotonic() - self._heard > self._orphan_s
                if self._stream is not None:
                    # Who does not answer will not say when another master has taken over.
                    self._stream.cancel()
            self._see_to_the_end()
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=self._every_s)
            while not self._wake.empty():
                self._wake.get()

    def _see_to_the_end(self) -> None:
        """Ends this worker, unless its main thread will notice by itself."""
        if self._closed:
            return
        since = self._leaving_since
        if self._next.phase not in _BUSY:
            if since is not None or self.orphaned:
                orphaned = f"no master was heard from for orphan_s = {self._orphan_s:g} s"
                self._end(self.leaving or orphaned, late=False)
        elif since is not None and time.monotonic() - since > self._leave_s:
            self._end(self.leaving, late=True)
        elif self._hang_s and self._next.phase in _STEPS:
            self._see_whether_it_hangs()

    def _see_whether_it_hangs(self) -> None:
        now = time.monotonic()
        usual_s = 2 * _BEATS_PER_GRACE * self._every_s
        slept, self._looked = now - self._looked > max(self._hang_s, usual_s), now
        if slept:
            # All of this process stood still, and goes on now.
            self.alive()
        frame = sys._current_frames().get(self._main)
        if frame is None or now - self._alive <= self._hang_s:
            return
        self._hang_s, limit = 0.0, self._hang_s
        reason = f"its work has stood still for more than hang_s = {limit:g} s"
        trace = "".join(["Where it stands:\n", *traceback.format_stack(frame)])
        threading.Thread(target=self._hangs, args=(reason, trace), daemon=True).start()

    def _end(self, reason: str, *, late: bool) -> None:
        if late not in self._ended:
            self._ended.add(late)
            # It may take a while, in which the heart must beat: who is silent is killed.
            threading.Thread(target=self._ends, args=(reason, late), daemon=True).start()

    def _follow(self) -> None:
        request = pb.OrdersRequest(worker=self._next.worker)
        while not self._closed:
            try:
                self._stream = self._client.follow("Follow", request)
                if self._closed:
                    self._stream.cancel()
                for orders in self._stream:
                    if 0 < orders.term < self._client.term:
                        # Of a master that another one has taken over from.
                        self._stream.cancel()
                        continue
                    # A new master does not know yet what the last one had given up.
                    self._given_up = max(self._given_up, orders.given_up)
                    self.regroup = orders.regroup
                    self.stop = orders.stop
            except rpc.Unreachable:
                # Orders of a master that is gone say nothing about what the next one has in mind.
                self.regroup = False
            time.sleep(_PAUSE_S)

    def _send(self, deadline_s: float) -> None:
        with self._sending:
            with self._lock:
                request = pb.HeartbeatRequest()
                request.CopyFrom(self._next)
                del self._next.steps[:], self._next.evaluations[:], self._next.notices[:]
            if self._progress is not None:
                request.progress.CopyFrom(messages.progress_message(self._progress))
            request.term = self._client.term
            try:
                self._client.call("Heartbeat", request, deadline_s=deadline_s)
            except rpc.Unreachable:
                # The next master shall have it, in its order.
                with self._lock:
                    for name in ("steps", "evaluations", "notices"):
                        unsent = [*getattr(request, name), *getattr(self._next, name)]
                        del getattr(self._next, name)[:]
                        getattr(self._next, name).extend(unsent[-_MOST_REPORTS:])
                raise


def end_process(reason: str, status: int) -> None:
    """Ends this process at once; with status 0 in good order as far as others can tell."""
    sys.stderr.write(f"This worker ends: {reason}.\n")
    sys.stderr.flush()
    os._exit(status)
