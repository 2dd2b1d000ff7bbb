"""What a person, a log or a program sees of a job: statuses → a live panel, plain lines or JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from elasticdl.config import JobConfig

if TYPE_CHECKING:  # Rich is loaded only by what draws: it is a good part of the start-up time.
    import rich.console
    import rich.live

Metrics = Mapping[str, float | Sequence[float]]

ACTIVE = ("starting", "running")
AT_WORK = ("member", "evaluating", "exporting", "predicting")
PLAIN_EVERY_S = 10.0
JSON_EVERY_S = 1.0
LIVE_EVERY_S = 0.1
GAP = "  "


class Worker(Protocol):
    """One worker process, as far as it is shown."""

    @property
    def worker(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def streams(self) -> Sequence[int]: ...


class Status(Protocol):
    """A job at one moment; the fields are those of `JobStatus` in the protocol."""

    @property
    def phase(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def epoch_fraction(self) -> float: ...
    @property
    def records(self) -> int: ...
    @property
    def records_total(self) -> int: ...
    @property
    def records_per_s(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def eval_metrics(self) -> Metrics: ...
    @property
    def eval_version(self) -> int: ...
    @property
    def workers(self) -> Sequence[Worker]: ...
    @property
    def seconds_left(self) -> float: ...
    @property
    def notices(self) -> Sequence[str]: ...
    @property
    def output(self) -> str: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def checkpoint_version(self) -> int: ...
    @property
    def checkpoint_problem(self) -> str: ...


class View(Protocol):
    """Shows one job from its first line to its result."""

    def started(self, config: JobConfig, where: str) -> None:
        """Says where the job runs.

        Args:
            config: of the job as it is: one that was taken over has the name that it had.
        """

    def show(self, status: Status, now: float) -> None:
        """Shows the status, or nothing if the last one was shown just before.

        Args:
            now: seconds on any clock that does not go back.
        """

    def remark(self, text: str) -> None:
        """Says something about the job that is no part of its status."""

    def result(self, status: Status) -> None:
        """Shows what came out."""

    def text(self, text: str) -> None:
        """Shows a result that is only text."""

    def close(self) -> None:
        """Leaves the terminal as it was; may be called twice."""


class Lines:
    """A stream of whole lines, which goes on silently when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._gone = False

    def write(self, line: str) -> None:
        if self._gone:
            return
        try:
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except BrokenPipeError:
            self._gone = True
            discard(self.stream)


def discard(stream: TextIO) -> None:
    """Lets what the stream still holds go nowhere, so that flushing it at exit cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


# ---- words ------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A loss or metric in a few characters."""
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def measured(value: float | Sequence[float]) -> str:
    """A metric: one number, or the first entries of a vector."""
    if isinstance(value, Sequence):
        shown = ", ".join(number(each) for each in value[:4])
        return f"[{shown}, …]" if len(value) > 4 else f"[{shown}]"
    return number(value)


def named(metrics: Metrics) -> list[str]:
    """Each metric with its name, in the order of the mapping."""
    return [f"{name} {measured(value)}" for name, value in metrics.items()]


def duration(seconds: float) -> str:
    """A time to wait, in the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(items: int, one: str) -> str:
    """A number of things: 1 worker, 2 workers."""
    return f"{items:,} {one}" if items == 1 else f"{items:,} {one}s"


def fraction(config: JobConfig, status: Status) -> float:
    """How much of the job is done, 0 to 1."""
    parts = [0.0]
    if status.records_total:
        parts.append(status.records / status.records_total)
    elif status.epochs:
        parts.append((status.epoch + status.epoch_fraction) / status.epochs)
    if config.max_steps:
        parts.append(status.version / config.max_steps)
    return min(max(parts), 1.0)


def where(config: JobConfig, *, in_process: bool = False) -> str:
    """The first line: the job's name and where it runs."""
    if in_process:
        return f"Job {config.job_name} runs in this process."
    place = "locally"
    if config.cluster == "kubernetes":
        place = f"on Kubernetes, context {config.kube_context}, namespace {config.namespace},"
    return f"Job {config.job_name} runs {place} with {count(config.num_workers, 'worker')}."


def position(config: JobConfig, status: Status) -> list[str]:
    """Where the job stands."""
    if config.kind == "train":
        epoch = min(status.epoch + 1, max(status.epochs, 1))
        return [f"epoch {epoch}/{max(status.epochs, 1)}", f"step {status.version:,}"]
    if status.records_total:
        return [f"{status.records:,} of {count(status.records_total, 'record')}"]
    return [count(status.records, "record")]


def facts(config: JobConfig, status: Status) -> list[str]:
    """What has been measured, and by whom."""
    shown = []
    if config.kind == "train" and status.version:
        shown.append(f"loss {number(status.loss)}")
    shown += named(status.metrics)
    if status.records_per_s > 0:
        shown.append(f"{status.records_per_s:,.0f} records/s")
    at_work = [each for each in status.workers if each.phase in AT_WORK]
    wanted = status.num_workers or len(status.workers)
    if len(at_work) == wanted:
        shown.append(count(wanted, "worker"))
    else:
        shown.append(f"{len(at_work)} of {count(wanted, 'worker')}")
    if status.checkpoint_problem:
        shown.append("no checkpoint can be written")
    return shown


def part_done(status: Status) -> float:
    """How much of the job is done, 0 to 1, as far as the status says."""
    return status.records / status.records_total if status.records_total else 0.0


def status_lines(config: JobConfig, status: Status) -> list[str]:
    """A job in full: where it stands, its workers, what was decided."""
    lines = [f"Job {config.job_name}: {status.phase}. {status.reason}".rstrip()]
    if status.phase in ACTIVE:
        lines.append(progress_line(config, status))
    if status.eval_metrics:
        lines.append(evaluation_line(status))
    if status.checkpoint_version:
        lines.append(f"checkpoint: step {status.checkpoint_version:,}")
    if status.checkpoint_problem:
        lines.append(status.checkpoint_problem)
    rows = [
        (each.worker, each.phase, ",".join(map(str, each.streams)) if each.rank >= 0 else "")
        for each in status.workers
    ]
    if rows:
        lines += columns([("worker", "phase", "streams"), *rows])
    lines += [f"note: {text}" for text in status.notices]
    return [*lines, f"output: {status.output}"] if status.output else lines


def full_status_fields(status: Status) -> dict[str, Any]:
    """All that `status_lines` shows, as JSON can hold it."""
    return {
        **status_fields(status),
        "generation": status.generation,
        "num_workers": status.num_workers,
        "checkpoint_version": status.checkpoint_version,
        "checkpoint_problem": status.checkpoint_problem,
        "notices": list(status.notices),
        "output": status.output,
        "workers": [
            {
                "worker": each.worker,
                "phase": each.phase,
                "rank": each.rank,
                "streams": list(each.streams),
            }
            for each in status.workers
        ],
    }


def left(status: Status) -> list[str]:
    """The time that remains, if it is known."""
    known = math.isfinite(status.seconds_left) and status.seconds_left > 0
    return [f"{duration(status.seconds_left)} left"] if known else []


def progress_line(config: JobConfig, status: Status) -> str:
    """One line for a log."""
    if status.phase == "starting":
        return f"starting: {status.reason}" if status.reason else "starting"
    pieces = [*position(config, status), f"{fraction(config, status):.0%}"]
    return GAP.join([*pieces, *facts(config, status), *left(status)])


def evaluation_line(status: Status) -> str:
    """The metrics of the last evaluation during training."""
    step = [f"step {status.eval_version:,}"] if status.eval_version else []
    return f"evaluation: {GAP.join([*step, *named(status.eval_metrics)])}"


def result_lines(config: JobConfig, status: Status, *, quiet: bool = False) -> list[str]:
    """The result: metrics, and where the output lies; if quiet, only what was asked for."""
    output = status.output or config.output
    if config.kind == "evaluate":
        metrics = status.eval_metrics or status.metrics
        lines = [f"{name} {measured(value)}" for name, value in metrics.items()]
        return lines if quiet or not output else [*lines, f"metrics: {output}"]
    if quiet:
        return [output]
    if config.kind == "predict":
        return [f"predictions: {output} ({count(status.records, 'record')})"]
    lines = []
    if status.version:
        trained = [f"loss {number(status.loss)}", *named(status.metrics)]
        lines.append(GAP.join([f"training:   step {status.version:,}", *trained]))
    if status.eval_metrics:
        lines.append(evaluation_line(status))
    return [*lines, f"trained model: {output}"]


# ---- what is new ------------------------------------------------------------------------------


@dataclass(frozen=True)
class News:
    """One thing to say: `what` is "progress", "evaluation" or "notice"."""

    what: str
    text: str = ""


class Watcher:
    """Decides which of many statuses are worth a line."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last: Status | None = None
        self._said_s = -math.inf
        self._notices = 0

    def see(self, status: Status, now: float) -> list[News]:
        """What is to be said of this status, given those seen before."""
        last, news = self._last, []
        news += [News("notice", text) for text in status.notices[self._notices :]]
        self._notices = max(self._notices, len(status.notices))
        seen = last is not None and (last.eval_version, last.eval_metrics) == (
            status.eval_version,
            status.eval_metrics,
        )
        if status.eval_metrics and not seen:
            news.append(News("evaluation"))
        moved = last is None or last.phase != status.phase
        waits = status.phase == "starting" and last is not None and last.reason != status.reason
        due = status.phase in ACTIVE and now - self._said_s >= self._every_s
        if status.phase in ACTIVE and (moved or waits or due):
            news.append(News("progress"))
            self._said_s = now
        self._last = status
        return news


# ---- views ------------------------------------------------------------------------------------


class Plain:
    """Progress as lines on `err`, every ten seconds and at changes; the result on `out`."""

    def __init__(self, config: JobConfig, out: Lines, err: Lines) -> None:
        self._config, self._out, self._err = config, out, err
        self._watcher = Watcher(PLAIN_EVERY_S)

    def started(self, config: JobConfig, where: str) -> None:
        self._config = config
        self._err.write(where)

    def show(self, status: Status, now: float) -> None:
        for news in self._watcher.see(status, now):
            self._err.write(self._line(news, status))

    def _line(self, news: News, status: Status) -> str:
        if news.what == "notice":
            return f"note: {news.text}"
        if news.what == "evaluation":
            return evaluation_line(status)
        return progress_line(self._config, status)

    def remark(self, text: str) -> None:
        self._err.write(text)

    def result(self, status: Status) -> None:
        for line in result_lines(self._config, status):
            self._out.write(line)

    def text(self, text: str) -> None:
        self._out.write(text)

    def close(self) -> None:
        """Nothing to undo: lines stay."""


class Quiet(Plain):
    """Of the result only what was asked for: the output's place, or the metrics."""

    def started(self, config: JobConfig, where: str) -> None:
        """Not shown."""

    def show(self, status: Status, now: float) -> None:
        """Not shown."""

    def remark(self, text: str) -> None:
        """Not shown."""

    def result(self, status: Status) -> None:
        for line in result_lines(self._config, status, quiet=True):
            self._out.write(line)


class Live(Plain):
    """A panel on the terminal that is redrawn in place; evaluations and notices scroll above it."""

    def __init__(
        self, config: JobConfig, out: Lines, err: Lines, console: "rich.console.Console"
    ) -> None:
        super().__init__(config, out, err)
        self._console = console
        self._live: rich.live.Live | None = None
        self._drawn_s = -math.inf
        self._phase = ""

    def show(self, status: Status, now: float) -> None:
        for news in self._watcher.see(status, now):
            if news.what != "progress":
                self._print(self._line(news, status))
        if status.phase == self._phase and now - self._drawn_s < LIVE_EVERY_S:
            return
        self._drawn_s, self._phase = now, status.phase
        if self._live is None:
            import rich.live

            self._live = rich.live.Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(panel(self._config, status), refresh=True)

    def _print(self, line: str) -> None:
        import rich.text

        self._console.print(rich.text.Text(line))

    def remark(self, text: str) -> None:
        self._print(text)

    def result(self, status: Status) -> None:
        self.close()
        super().result(status)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def panel(config: JobConfig, status: Status) -> "rich.console.RenderableType":
    """Two or three lines for a terminal, each cut at its width."""
    import rich.console
    import rich.constrain
    import rich.progress_bar
    import rich.table
    import rich.text

    def line(pieces: Sequence[str], style: str = "") -> rich.text.Text:
        text = GAP.join(pieces)
        return rich.text.Text(text, style=style, no_wrap=True, overflow="ellipsis")

    name = rich.text.Text(config.job_name, style="bold", no_wrap=True, overflow="ellipsis")
    if status.phase == "starting":
        name.append(f"{GAP}starting", style="yellow")
        if status.reason:
            name.append(f": {status.reason}", style="not bold")
        return name
    done = fraction(config, status)
    top = rich.table.Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in (None, None, 1, None, None):  # the bar takes what the words leave
        top.add_column(ratio=ratio)
    top.add_row(
        name,
        line(position(config, status)),
        rich.progress_bar.ProgressBar(total=1.0, completed=done),
        line([f"{done:.0%}"]),
        line(left(status) if status.phase in ACTIVE else [status.phase]),
    )
    rows: list[rich.console.RenderableType] = [
        rich.constrain.Constrain(top, 100),
        line(facts(config, status)),
    ]
    if status.eval_metrics:
        rows.append(line([evaluation_line(status)], style="cyan"))
    return rich.console.Group(*rows)


class Json:
    """One JSON object a line on `out`: started, progress, evaluation, notice, result."""

    def __init__(self, config: JobConfig, out: Lines, *, quiet: bool = False) -> None:
        self._config, self._out, self._quiet = config, out, quiet
        self._watcher = Watcher(JSON_EVERY_S)

    def _event(self, event: str, **fields: Any) -> None:
        write_event(self._out, event, **fields)

    def started(self, config: JobConfig, where: str) -> None:
        self._config = config
        if not self._quiet:
            self._event(
                "started",
                job_name=self._config.job_name,
                kind=self._config.kind,
                cluster=self._config.cluster,
                num_workers=self._config.num_workers,
                text=where,
            )

    def show(self, status: Status, now: float) -> None:
        if self._quiet:
            return
        for news in self._watcher.see(status, now):
            if news.what == "notice":
                self._event("notice", text=news.text)
            elif news.what == "evaluation":
                self._event("evaluation", version=status.eval_version, metrics=status.eval_metrics)
            else:
                self._event("progress", **status_fields(status))

    def remark(self, text: str) -> None:
        if not self._quiet:
            self._event("notice", text=text)

    def result(self, status: Status) -> None:
        output = status.output or self._config.output
        self._event("result", kind=self._config.kind, **status_fields(status), output=output)

    def text(self, text: str) -> None:
        self._event("result", text=text)

    def close(self) -> None:
        """Nothing to undo: lines stay."""


def status_fields(status: Status) -> dict[str, Any]:
    """The status as JSON can hold it, under the protocol's names."""
    return {
        "phase": status.phase,
        "reason": status.reason,
        "version": status.version,
        "epoch": status.epoch,
        "epochs": status.epochs,
        "epoch_fraction": status.epoch_fraction,
        "records": status.records,
        "records_total": status.records_total,
        "records_per_s": status.records_per_s,
        "loss": status.loss,
        "metrics": status.metrics,
        "eval_metrics": status.eval_metrics,
        "eval_version": status.eval_version,
        "workers": [{"worker": each.worker, "phase": each.phase} for each in status.workers],
        "seconds_left": status.seconds_left,
    }


def finite(value: Any) -> Any:
    """The value with null where JSON has no number: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def write_event(out: Lines, event: str, **fields: Any) -> None:
    """One JSON object; numbers that JSON lacks are null."""
    out.write(json.dumps({"event": event, **finite(fields)}, ensure_ascii=False))


def write_error(err: Lines, message: str, trace: str) -> None:
    """The user's own traceback if there is one, then what is wrong, in one line."""
    if trace:
        err.write(trace.rstrip("\n"))
    err.write(f"error: {' '.join(message.split())}")


# ---- settings ---------------------------------------------------------------------------------


def settings_lines(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Setting, value and origin in aligned columns."""
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text, aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
