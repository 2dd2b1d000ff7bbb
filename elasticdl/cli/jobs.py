"""argv → what becomes of a job that runs on this machine: list, status, scale, stop."""

import json
from typing import Any, Protocol

import typer

from elasticdl.cli import display
from elasticdl.errors import UserError

LIST_EXAMPLES = """
Example:

  elasticdl job list
"""

STATUS_EXAMPLES = """
Examples:

  elasticdl job status my-model-3f9a21

  elasticdl job status my-model-3f9a21 --json
"""

SCALE_EXAMPLES = """
Example:

  elasticdl job scale my-model-3f9a21 --num_workers=4
"""

STOP_EXAMPLES = """
A training that writes checkpoints leaves one; the same command goes on from it.

Example:

  elasticdl job stop my-model-3f9a21
"""

app = typer.Typer(help="List, scale and stop jobs that run.", no_args_is_help=True)

_NAME = typer.Argument(..., metavar="NAME", help="The job's name; `elasticdl job list` has it.")
_JSON = typer.Option(False, "--json", help="Print one JSON document.")


class Session(Protocol):
    """The part of `main.Session` that is used here."""

    @property
    def out(self) -> Any: ...
    @property
    def err(self) -> Any: ...
    @property
    def api(self) -> Any: ...


def _with_master(session: Session, name: str) -> Any:
    """The job, which is not taken over: this command ends at once, and would take it along."""
    api = session.api()
    for each in api.jobs():
        if each.job_name == name and each.phase == "orphaned":
            workers = display.count(each.workers, "worker")
            raise UserError(
                f"job_name: expected a job that has a master; got {name}, whose {workers} "
                "run without one. Give the job's own command again to take them over, or end them "
                f"with `elasticdl job stop {name}`."
            )
    return api.attach(name)


@app.command("list", epilog=LIST_EXAMPLES)
def list_(ctx: typer.Context, as_json: bool = _JSON) -> None:
    """List the jobs that run on this machine."""
    session: Session = ctx.obj
    found = session.api().jobs()
    out = display.Lines(session.out)
    if as_json:
        rows = [
            {
                "job_name": each.job_name,
                "kind": each.kind,
                "phase": each.phase,
                "workers": each.workers,
                "output": each.output,
            }
            for each in found
        ]
        out.write(json.dumps(rows))
        return
    if not found:
        display.Lines(session.err).write("No jobs run on this machine.")
        return
    rows_of_text = [("job", "kind", "phase", "workers", "done", "output")]
    for each in found:
        done = "" if each.status is None else f"{display.part_done(each.status):.0%}"
        rows_of_text.append(
            (each.job_name, each.kind, each.phase, str(each.workers), done, each.output)
        )
    for line in display.columns(rows_of_text):
        out.write(line)


@app.command(epilog=STATUS_EXAMPLES)
def status(ctx: typer.Context, name: str = _NAME, as_json: bool = _JSON) -> None:
    """Show how a job stands, its workers and what was decided."""
    session: Session = ctx.obj
    job = _with_master(session, name)
    now = job.status()
    out = display.Lines(session.out)
    if as_json:
        out.write(json.dumps(display.finite(display.full_status_fields(now))))
        return
    for line in display.status_lines(job.config, now):
        out.write(line)


@app.command(epilog=SCALE_EXAMPLES)
def scale(
    ctx: typer.Context,
    name: str = _NAME,
    num_workers: int = typer.Option(..., "--num_workers", help="Workers that there should be."),
) -> None:
    """Change the number of a job's workers while it runs."""
    session: Session = ctx.obj
    _with_master(session, name).scale(num_workers)
    display.Lines(session.out).write(
        f"Job {name} goes on with {display.count(num_workers, 'worker')}."
    )


@app.command(epilog=STOP_EXAMPLES)
def stop(ctx: typer.Context, name: str = _NAME) -> None:
    """Stop a job."""
    session: Session = ctx.obj
    job = session.api().attach(name)
    job.cancel()
    last = job.status()
    version = last.checkpoint_version
    saved = f" Its last checkpoint is of step {version:,}." if version else ""
    display.Lines(session.out).write(f"Job {name} is {last.phase}.{saved}")
