"""What a job has come to so far: the reports of its workers, in numbers and in files."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from elasticdl.core.progress import Progress
from elasticdl.master import eventfile
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import messages

_RATE_WINDOW_S = 10.0


@dataclass
class History:
    """Takes in reports; the newest of each kind is what status shows.

    `now` is in seconds of any clock that only rises.

    Args:
        directory: where metrics.jsonl and the event files (logs/) go; None: nowhere.
    """

    directory: Path | None
    progress: Progress | None = None
    elements: int = 0
    version: int = 0
    loss: float = math.nan
    metrics: dict[str, messages.Metric] = field(default_factory=dict)
    evaluation: dict[str, messages.Metric] = field(default_factory=dict)
    evaluated_version: int = -1
    notices: list[str] = field(default_factory=list)
    _rates: deque[tuple[float, int]] = field(default_factory=deque)
    _lines: TextIO | None = None
    _curves: dict[str, eventfile.Writer] = field(default_factory=dict)

    def heartbeat(self, request: pb.HeartbeatRequest, now: float) -> None:
        """Takes in what one worker reports; what was already reported counts once.

        Raises:
            OSError: it could not be written.
        """
        for notice in request.notices:
            if notice not in self.notices:
                self.notices.append(notice)
        for report in request.steps:
            if report.version > self.version:
                self._step(report, request.learning_rate, now)
        for evaluation in request.evaluations:
            if evaluation.version > self.evaluated_version:
                self._evaluation(evaluation)
        if request.HasField("progress"):
            progress = messages.progress_value(request.progress)
            if self.progress is None or progress.version > self.progress.version:
                self.progress = progress

    def counted(self, elements: int, now: float) -> None:
        """Records done so far, where no steps are reported (prediction, evaluation)."""
        self.elements = elements
        self._rates.append((now, elements))

    def records_per_s(self, now: float) -> float:
        """Over the last ten seconds; 0 before two reports have come."""
        while len(self._rates) > 2 and now - self._rates[0][0] > _RATE_WINDOW_S:
            self._rates.popleft()
        if len(self._rates) < 2:
            return 0.0
        (begin, before), (end, after) = self._rates[0], self._rates[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def close(self) -> None:
        """Nothing more will come."""
        for file in (self._lines, *self._curves.values()):
            # What a full disk did not take was told when it came.
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    def _step(self, report: pb.StepReport, learning_rate: float, now: float) -> None:
        self.version = report.version
        self.elements += report.elements
        self.loss = report.loss_sum / report.elements if report.elements else math.nan
        self.metrics = messages.metric_values(report.metrics)
        self._rates.append((now, self.elements))
        self._write(
            "train",
            report.version,
            {"loss": self.loss, **self.metrics},
            {"elements": report.elements, "steps": report.steps, "learning_rate": learning_rate},
        )

    def _evaluation(self, report: pb.EvaluationReport) -> None:
        self.evaluated_version = report.version
        self.evaluation = messages.metric_values(report.metrics)
        self._write("eval", report.version, self.evaluation, {"elements": report.elements})

    def _write(
        self,
        kind: str,
        version: int,
        metrics: Mapping[str, messages.Metric],
        about: Mapping[str, float],
    ) -> None:
        if self.directory is None:
            return
        if self._lines is None:
            self._lines = (self.directory / "metrics.jsonl").open("a", encoding="utf-8")
        line: dict[str, Any] = {"kind": kind, "version": version, "time": time.time(), **about}
        # A user's metric may have any name.
        line |= {f"metric_{name}" if name in line else name: v for name, v in metrics.items()}
        self._lines.write(json.dumps(plain(line)) + "\n")
        self._lines.flush()
        if kind not in self._curves:
            self._curves[kind] = eventfile.Writer(self.directory / "logs" / kind)
        scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
        if about.get("learning_rate"):
            scalars["learning_rate"] = about["learning_rate"]
        self._curves[kind].scalars(scalars, version)


def plain(value: Any) -> Any:
    """The same for JSON, which has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
