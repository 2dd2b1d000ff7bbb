"""argv → one call of the API, and its outcome → what is printed and the exit status."""

import contextlib
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, Protocol, TextIO

import typer

from elasticdl import config
from elasticdl import version as versions
from elasticdl.cli import admin, data, display, jobs, zoo
from elasticdl.errors import Cancelled, UserCodeError, UserError

POLL_S = 0.5
REPORT = "Please report it with the output of the same command under ELASTICDL_DEBUG=1."


class Job(Protocol):
    """A job that has been started; the part of the API's job that is used here."""

    @property
    def config(self) -> config.JobConfig: ...
    def status(self) -> display.Status: ...
    def poll(self, timeout_s: float) -> display.Status: ...
    def wait(self) -> object: ...
    def cancel(self) -> None: ...
    @property
    def url(self) -> str: ...


class Api(Protocol):
    """What runs jobs: `elasticdl.api`, or a stand-in in tests."""

    def start(self, config: config.JobConfig, progress: Callable[[str], None] = ...) -> Job: ...
    def describe(self, config: config.JobConfig) -> str: ...
    def manifests(self, config: config.JobConfig) -> str: ...
    def jobs(self, where: config.Where = ...) -> list[Any]: ...
    def attach(self, job_name: str, where: config.Where = ...) -> Any: ...
    def forward(self, job_name: str, where: config.Where) -> Any: ...
    def run_in_process(
        self, config: config.JobConfig, watch: Callable[[display.Status], None]
    ) -> Job: ...


@dataclass(frozen=True)
class Session:
    """The world around one command."""

    environ: Mapping[str, str]
    out: TextIO
    err: TextIO
    api: Callable[[], Api]
    clock: Callable[[], float]


class Stopped(BaseException):
    """A signal asked this command to end; it passes through everything, like KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:], Session(os.environ, sys.stdout, sys.stderr, _api, time.monotonic)))


def run(argv: Sequence[str], session: Session) -> int:
    """Does what the command line says; returns the exit status.

    0: done. 1: a fault of elasticdl. 2: something that the user can put right. 128 + n: stopped
    by signal n (130: Ctrl-C).
    """
    out, err = display.Lines(session.out), display.Lines(session.err)
    failed = _Failures(out, err, as_json="--json" in argv, environ=session.environ)
    command = typer.main.get_command(app)
    try:
        with _signals():
            status = command.main(
                list(argv), prog_name="elasticdl", standalone_mode=False, obj=session
            )
            session.out.flush()
    except typer.TyperException as error:
        if not error.format_message():  # a group without a command: its help has been shown
            return 2
        return failed.user(_usage_problem(error))
    except UserCodeError as error:
        return failed.user(str(error), kind="user_code", trace=error.trace)
    except UserError as error:
        return failed.user(str(error))
    except Cancelled as error:
        return failed.stopped(str(error) or "the job was stopped.", signal.SIGINT)
    except (KeyboardInterrupt, typer.Abort):
        return failed.stopped("stopped by Ctrl-C.", signal.SIGINT)
    except Stopped as stop:
        return failed.stopped(_stopped_by(stop.number), stop.number)
    except BrokenPipeError:
        # Whoever read has enough, as in `elasticdl config | head -1`.
        display.discard(session.out)
        return 0
    except Exception as error:  # the outermost frame: a fault of ours ends here, and is named
        return failed.fault(error)
    return status if isinstance(status, int) else 0


class _Failures:
    """Prints why a command failed, and gives the exit status."""

    def __init__(
        self, out: display.Lines, err: display.Lines, *, as_json: bool, environ: Mapping[str, str]
    ) -> None:
        self._out, self._err, self._as_json, self._environ = out, err, as_json, environ

    def _say(self, kind: str, message: str, trace: str, exit_status: int) -> int:
        if self._as_json:
            display.write_event(
                self._out,
                "error",
                kind=kind,
                message=message,
                trace=trace,
                exit_status=exit_status,
            )
        else:
            display.write_error(self._err, message, trace)
        return exit_status

    def user(self, message: str, *, kind: str = "user", trace: str = "") -> int:
        return self._say(kind, message, trace, 2)

    def stopped(self, message: str, number: int) -> int:
        return self._say("cancelled", message, "", 128 + number)

    def fault(self, error: Exception) -> int:
        debug = bool(self._environ.get("ELASTICDL_DEBUG"))
        trace = "".join(traceback.format_exception(error)) if debug else ""
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        name = ": ".join(each for each in (type(error).__name__, first_line) if each)
        return self._say("bug", f"this is a fault in elasticdl: {name}. {REPORT}", trace, 1)


def _usage_problem(error: typer.TyperException) -> str:
    """Click's complaint in the form of our errors, with the nearest option and a hint."""
    message = error.format_message().rstrip(".")
    near = getattr(error, "possibilities", None)
    if near:
        return f"{error.message}. Did you mean {' or '.join(sorted(near))}?"
    if message.endswith("?"):
        return message
    if "unexpected extra argument" in message:
        return f'{message}. Quote patterns, so that the shell leaves them: --data="data/*".'
    context = getattr(error, "ctx", None)
    return f"{message}. See {context.command_path if context else 'elasticdl'} --help."


def _stopped_by(number: int) -> str:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"stopped by {name}."


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """While inside, the signals that end a command raise `Stopped` in the main thread."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    before = {
        number: signal.signal(number, stop)
        # A terminal that is closed (SIGHUP) ends the command at once, but not its job: the workers
        # go on for orphan_s, and the same command takes them over.
        for number in (signal.SIGINT, signal.SIGTERM)
        # A parent that ignores a signal, such as nohup, means it for us too.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _api() -> Api:
    from elasticdl import api  # with it come gRPC and NumPy, which --help does not need

    return api


# ---- the commands -----------------------------------------------------------------------------

# Rich reads [...] as markup where a small letter follows the bracket; ours have none.
TRAIN_EXAMPLES = r"""
Examples:

  elasticdl train --model_zoo=$HOME/work --model_def=fintech.MyKerasModel \
    --data="train/*.recordio" --output=my_trained_model

  elasticdl train --model_def=mnist.MnistElasticDLSpec --num_workers=2 --epochs=10 \
    --params="learning_rate=0.01" --data=train --eval_data=test --output=my_trained_model

  elasticdl train --model_zoo=. --model_def=digits.Conv --data=train --dry_run
"""

EVALUATE_EXAMPLES = """
Example:

  elasticdl evaluate --trained_model=my_trained_model --data="test/*.recordio"
"""

PREDICT_EXAMPLES = """
Examples:

  elasticdl predict --trained_model=my_trained_model --data=test --output=predicted/

  elasticdl predict --trained_model=my_trained_model --data=test --output=all.recordio
"""

CONFIG_EXAMPLES = """
Settings come from flags, ELASTICDL_* variables, elasticdl.toml in the zoo, and
~/.config/elasticdl/config.toml, in this order.

Examples:

  elasticdl config train --model_zoo=$HOME/work

  ELASTICDL_NUM_WORKERS=4 elasticdl config predict --json
"""

EXAMPLES = r"""
Examples:

  elasticdl data write train.csv train/

  elasticdl train --model_zoo=$HOME/work --model_def=fintech.MyKerasModel \
    --data="train/*.recordio" --output=my_trained_model

  elasticdl evaluate --trained_model=my_trained_model --data=test

  elasticdl predict --trained_model=my_trained_model --data=new --output=predicted/
"""

GROUPS = (
    "Model",
    "Data",
    "Training",
    "Job",
    "Kubernetes",
)  # of settings, in the order in which help has them

app = typer.Typer(
    name="elasticdl",
    help="Trains Keras models with one command, on one process or on several.",
    epilog=EXAMPLES,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # --batch_size and --batch-size are the same.
        "token_normalize_func": lambda token: token.replace("-", "_"),
    },
)


@app.callback(invoke_without_command=True)
def _elasticdl(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> int:
    session: Session = ctx.obj
    if version:
        print(f"elasticdl {versions.VERSION}", file=session.out)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=session.out)
    return 0


@dataclass(frozen=True)
class _Switch:
    """An option of a command that is no setting of the job: it concerns this call alone."""

    name: str
    help: str


DRY_RUN = _Switch(
    "dry_run",
    "No job: build the model, take one batch, print the shapes; for Kubernetes, print the objects.",
)
DETACH = _Switch("detach", "Return at once; the job goes on in its cluster.")
IN_PROCESS = _Switch("in_process", "Run in this process, for a debugger; one worker.")
QUIET = _Switch("quiet", "Print errors and the result only.")
JSON = _Switch("json", "Print one JSON object a line on stdout: progress, result, error.")


def _parameter(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _option(setting: config.Setting) -> inspect.Parameter:
    """The setting's option; None: not given. Its text is read by `config.resolve`."""
    shared: dict[str, Any] = {
        "help": f"{setting.help} {_documented_default(setting)}".rstrip().replace("[", r"\["),
        "rich_help_panel": setting.group,
        "show_default": False,
    }
    if setting.type is bool:
        flag = typer.Option(None, f"--{setting.name}/--no_{setting.name}", **shared)
        return _parameter(setting.name, bool | None, flag)
    metavars = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
    metavar = "PATH" if setting.path else metavars[setting.type]
    text = typer.Option(None, f"--{setting.name}", metavar=metavar, **shared)
    return _parameter(setting.name, str | None, text)


def _documented_default(setting: config.Setting) -> str:
    if setting.required:
        return "(required)"
    if setting.type is bool:
        return f"(default: {'yes' if setting.default else 'no'})"
    # No text by default means what the help says.
    return f"(default: {setting.default})" if setting.default != "" else ""


def _with_options(
    command: Callable[..., int],
    settings: Sequence[config.Setting],
    switches: Sequence[_Switch],
    *before: inspect.Parameter,
) -> Callable[..., int]:
    """The command with the signature that Typer reads: one definition of each setting serves."""
    ordered = sorted(settings, key=lambda setting: GROUPS.index(setting.group))
    parameters = [_parameter("ctx", typer.Context), *before, *map(_option, ordered)]
    if any(setting.name == "params" for setting in settings):
        alias = typer.Option(None, "--model_params", hidden=True)
        parameters.append(_parameter("model_params", str | None, alias))
    parameters += [
        _parameter(switch.name, bool, typer.Option(False, f"--{switch.name}", help=switch.help))
        for switch in switches
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _job_command(kind: str, *switches: _Switch) -> Callable[..., int]:
    """The command that runs a job of this kind."""

    def command(ctx: typer.Context, **given: Any) -> int:
        chosen = {switch.name for switch in switches if given.pop(switch.name)}
        return _run_job(ctx.obj, kind, given, chosen)

    return _with_options(command, config.settings(kind), switches)


def _run_job(session: Session, kind: str, given: Mapping[str, object], switches: set[str]) -> int:
    dry = DRY_RUN.name in switches
    resolved = config.resolve(kind, given, session.environ, optional=("output",) if dry else ())
    job_config = resolved.config
    view = _view(session, job_config, switches)
    with contextlib.closing(view):
        for notice in resolved.notices:
            view.remark(f"note: {notice}")
        if dry and job_config.cluster == "kubernetes":
            view.text(session.api().manifests(job_config))
            return 0
        if dry:
            view.text(session.api().describe(job_config))
            return 0
        if DETACH.name in switches and job_config.cluster == "local":
            raise UserError(
                "detach: expected --cluster=kubernetes; a job on this machine ends with its "
                "command. Start it in the background of your shell."
            )
        if IN_PROCESS.name in switches:
            view.started(job_config, display.where(job_config, in_process=True))
            job = session.api().run_in_process(
                job_config, watch=lambda status: view.show(status, session.clock())
            )
        else:
            if job_config.cluster == "local":
                job = session.api().start(job_config)
            else:
                job = session.api().start(job_config, progress=_once_each(view))
            view.started(job.config, display.where(job.config))
        if job.config.cluster == "kubernetes":
            return _follow_remote(job, view, session.clock, detach=DETACH.name in switches)
        return _follow(job, view, session.clock)


def _follow(job: Job, view: display.View, clock: Callable[[], float]) -> int:
    """Shows the job until it ends. A signal cancels it and waits for it to leave cleanly.

    Raises:
        Stopped: again, when the job has left; or at once for a second signal.
    """
    try:
        status = job.status()
        view.show(status, clock())
        while status.phase in display.ACTIVE:
            status = job.poll(POLL_S)
            view.show(status, clock())
        job.wait()
    except Stopped as stop:
        view.remark(f"{_stopped_by(stop.number)} The job is ending; once more to leave at once.")
        job.cancel()
        with contextlib.suppress(Cancelled):
            job.wait()
            view.result(job.status())  # it had come to its end before it could be cancelled
        raise
    view.result(status)
    return 0


def _once_each(view: display.View) -> Callable[[str], None]:
    """Shows each thing that takes its time, but not how far it is."""
    shown: set[str] = set()

    def progress(line: str) -> None:
        what = line.split(": ")[0]
        if what not in shown:
            shown.add(what)
            view.remark(what[:1].upper() + what[1:])

    return progress


def _follow_remote(
    job: Job, view: display.View, clock: Callable[[], float], *, detach: bool
) -> int:
    """Shows a job in a cluster until it ends, or until a signal comes: the job goes on."""
    name = job.config.job_name
    back = (
        f"Job {name} goes on. `elasticdl job watch {name}` shows it again, `elasticdl job stop "
        f"{name}` ends it."
    )
    if detach:
        view.remark(back)
        return 0
    if job.url:
        view.remark(
            f"Status: {job.url} (closes with this command; `elasticdl dashboard {name}` opens it "
            "again)"
        )
    try:
        status = job.status()
        view.show(status, clock())
        while status.phase in display.ACTIVE:
            status = job.poll(POLL_S)
            view.show(status, clock())
        job.wait()
    except Stopped:
        view.remark(back)
        raise
    view.result(status)
    return 0


def _view(session: Session, job_config: config.JobConfig, switches: set[str]) -> display.View:
    out, err = display.Lines(session.out), display.Lines(session.err)
    if JSON.name in switches:
        return display.Json(job_config, out, quiet=QUIET.name in switches)
    if QUIET.name in switches:
        return display.Quiet(job_config, out, err)
    if session.err.isatty() and session.environ.get("TERM") != "dumb":
        import rich.console

        console = rich.console.Console(file=session.err, highlight=False)
        return display.Live(job_config, out, err, console)
    return display.Plain(job_config, out, err)


def _config(ctx: typer.Context, kind: str, json_: bool, given: Mapping[str, object]) -> int:
    session: Session = ctx.obj
    everything = [setting.name for setting in config.settings(kind)]
    resolved = config.resolve(kind, given, session.environ, optional=everything)
    if json_:
        settings = {
            name: {"value": origin.value, "origin": origin.source}
            for name, origin in resolved.origins.items()
        }
        print(json.dumps({"kind": kind, "settings": settings}), file=session.out)
        return 0
    for notice in resolved.notices:
        print(f"note: {notice}", file=session.err)
    rows = [("setting", "value", "origin")]
    for name, origin in resolved.origins.items():
        value = json.dumps(origin.value) if isinstance(origin.value, bool) else str(origin.value)
        missing = not value and kind in config.BY_NAME[name].required
        rows.append((name, value or "-", "missing" if missing else origin.source))
    for line in display.settings_lines(rows):
        print(line, file=session.out)
    return 0


def _config_command() -> Callable[..., int]:
    def command(ctx: typer.Context, *, kind: str, json: bool, **given: Any) -> int:
        return _config(ctx, kind, json, given)

    help = "Whose settings: train, evaluate or predict."
    kind = _parameter("kind", str, typer.Argument("train", help=help, show_default=True))
    return _with_options(command, config.SETTINGS, [JSON], kind)


app.command("train", epilog=TRAIN_EXAMPLES, help="Train a model.")(
    _job_command("train", DRY_RUN, IN_PROCESS, DETACH, QUIET, JSON)
)
app.command("evaluate", epilog=EVALUATE_EXAMPLES, help="Measure a trained model on records.")(
    _job_command("evaluate", IN_PROCESS, DETACH, QUIET, JSON)
)
app.command("predict", epilog=PREDICT_EXAMPLES, help="Write a trained model's outputs.")(
    _job_command("predict", IN_PROCESS, DETACH, QUIET, JSON)
)
app.command("config", epilog=CONFIG_EXAMPLES, help="Show each setting and where it comes from.")(
    _config_command()
)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="job")
app.add_typer(zoo.app, name="zoo")
app.add_typer(admin.app, name="admin")

WATCH_EXAMPLES = """
Example:

  elasticdl job watch my-model-3f9a21
"""

DASHBOARD_EXAMPLES = """
Example:

  elasticdl dashboard my-model-3f9a21
"""


@jobs.app.command("watch", epilog=WATCH_EXAMPLES)
def _watch(
    ctx: typer.Context,
    name: str = jobs.NAME,
    cluster: str | None = jobs.CLUSTER,
    kube_context: str | None = jobs.CONTEXT,
    namespace: str | None = jobs.NAMESPACE,
    json: bool = typer.Option(False, "--json", help=JSON.help),
) -> int:
    """Show a job in a cluster as the command does that has submitted it."""
    session: Session = ctx.obj
    there = jobs.where(session, cluster, kube_context, namespace)
    if there.cluster == "local":
        raise UserError(
            f"job_name: expected a job in a cluster; {name} would be one on this machine, which "
            f"its own command shows. See `elasticdl job status {name}`."
        )
    job = session.api().attach(name, there)
    view = _view(session, job.config, {JSON.name} if json else set())
    with contextlib.closing(view):
        view.started(job.config, display.where(job.config))
        return _follow_remote(job, view, session.clock, detach=False)


@app.command("dashboard", epilog=DASHBOARD_EXAMPLES)
def _dashboard(
    ctx: typer.Context,
    name: str = jobs.NAME,
    cluster: str | None = jobs.CLUSTER,
    kube_context: str | None = jobs.CONTEXT,
    namespace: str | None = jobs.NAMESPACE,
) -> int:
    """Open the URL of a job in a cluster, until Ctrl-C."""
    session: Session = ctx.obj
    there = jobs.where(session, cluster, kube_context, namespace)
    forward = session.api().forward(name, there)
    with contextlib.closing(forward):
        print(f"http://{forward.address}/", file=session.out, flush=True)
        try:
            while True:
                time.sleep(POLL_S)
        except Stopped:
            return 0
