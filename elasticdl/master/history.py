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
    epoch_elements: int = 0
    version: int = 0
    loss: float = math.nan
    metrics: dict[str, messages.Metric] = field(default_factory=dict)
    evaluation: dict[str, messages.Metric] = field(default_factory=dict)
    evaluated_version: int = -1
    notices: list[str] = field(default_factory=list)
    _rates: deque[tuple[float, int]] = field(default_factory=deque)
    _files: dict[str, TextIO] = field(default_factory=dict)
    _curves: dict[str, eventfile.Writer] = field(default_factory=dict)

    def go_on(self, *, notices: bool) -> None:
        """Takes in what earlier masters of this job have written.

        Args:
            notices: whether those who watch know them already.

        Raises:
            OSError: it could not be read.
        """
        for line in self._read("metrics.jsonl"):
            version = int(line.get("version", 0))
            if line.get("kind") == "train":
                self.version = max(self.version, version)
            elif version > self.evaluated_version:
                self.evaluated_version = version
                about = ("kind", "version", "time", "elements")
                self.evaluation = {
                    name: _known(value) for name, value in line.items() if name not in about
                }
        if notices:
            said = [line["text"] for line in self._read("events.jsonl") if line["event"] == "note"]
            self.notices = list(dict.fromkeys(said))

    def note(self, text: str, **about: Any) -> None:
        """Something that the user should read, once.

        Raises:
            OSError: it could not be written.
        """
        if text not in self.notices:
            self.notices.append(text)
            self.event("note", text=text, **about)

    def event(self, event: str, **about: Any) -> None:
        """A line of events.jsonl: what happened to the job, and when.

        Raises:
            OSError: it could not be written.
        """
        self._line("events.jsonl", {"event": event, "time": time.time(), **about})

    def heartbeat(self, request: pb.HeartbeatRequest, now: float) -> None:
        """Takes in what one worker reports; what was already reported counts once.

        Raises:
            OSError: it could not be written.
        """
        for notice in request.notices:
            self.note(notice, worker=request.worker)
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
        files: list[TextIO | eventfile.Writer] = [*self._files.values(), *self._curves.values()]
        for file in files:
            # What a full disk did not take was told when it came.
            with contextlib.suppress(OSError):
                file.close()

    def _step(self, report: pb.StepReport, learning_rate: float, now: float) -> None:
        self.version = report.version
        self.elements, self.epoch_elements = report.total_elements, report.epoch_elements
        self.loss = report.loss_sum / report.elements if report.elements else math.nan
        self.metrics = messages.metric_values(report.metrics)
        if self._rates and self._rates[-1][1] > self.elements:
            self._rates.clear()  # the job has gone back to a checkpoint
        self._rates.append((now, self.elements))
        self._write(
            "train",
            report.version,
            report.time,
            {"loss": self.loss, **self.metrics},
            {"elements": report.elements, "steps": report.steps, "learning_rate": learning_rate},
        )

    def _evaluation(self, report: pb.EvaluationReport) -> None:
        self.evaluated_version = report.version
        self.evaluation = messages.metric_values(report.metrics)
        self._write(
            "eval", report.version, time.time(), self.evaluation, {"elements": report.elements}
        )

    def _write(
        self,
        kind: str,
        version: int,
        at: float,
        metrics: Mapping[str, messages.Metric],
        about: Mapping[str, float],
    ) -> None:
        if self.directory is None:
            return
        line: dict[str, Any] = {"kind": kind, "version": version, "time": at, **about}
        # A user's metric may have any name.
        line |= {f"metric_{name}" if name in line else name: v for name, v in metrics.items()}
        self._line("metrics.jsonl", line)
        if kind not in self._curves:
            self._curves[kind] = eventfile.Writer(self.directory / "logs" / kind)
        scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
        if about.get("learning_rate"):
            scalars["learning_rate"] = about["learning_rate"]
        self._curves[kind].scalars(scalars, version)

    def _line(self, name: str, line: Mapping[str, Any]) -> None:
        if self.directory is None:
            return
        if name not in self._files:
            self._files[name] = (self.directory / name).open("a", encoding="utf-8")
        self._files[name].write(json.dumps(plain(dict(line))) + "\n")
        self._files[name].flush()

    def _read(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file, which loses one that a master's death has cut off."""
        if self.directory is None or not (self.directory / name).exists():
            return []
        path = self.directory / name
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
        return [json.loads(line) for line in whole.splitlines() if line]


def plain(value: Any) -> Any:
    """The same for JSON, which has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _known(value: Any) -> messages.Metric:
    """What `plain` has made JSON of."""
    if isinstance(value, list):
        return [math.nan if each is None else each for each in value]
    return math.nan if value is None else float(value)
