"""argv → what becomes of a job that runs: list, status, logs, scale, stop, delete."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import typer

from elasticdl import config
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

LOGS_EXAMPLES = """
Examples:

  elasticdl job logs my-model-3f9a21

  elasticdl job logs my-model-3f9a21 --worker=worker-1 --follow
"""

DELETE_EXAMPLES = """
What the job has written stays.

Example:

  elasticdl job delete my-model-3f9a21
"""

app = typer.Typer(help="List, scale and stop jobs that run.", no_args_is_help=True)

CLUSTER = typer.Option(None, "--cluster", help="Where: local or kubernetes.")
CONTEXT = typer.Option(None, "--kube_context", help="Context of the kubeconfig.")
NAMESPACE = typer.Option(None, "--namespace", help="Namespace in the cluster.")
NAME = typer.Argument(..., metavar="NAME", help="The job's name; `elasticdl job list` has it.")
_JSON = typer.Option(False, "--json", help="Print one JSON document.")


class Session(Protocol):
    """The part of `main.Session` that is used here."""

    @property
    def out(self) -> Any: ...
    @property
    def err(self) -> Any: ...
    @property
    def api(self) -> Any: ...
    @property
    def environ(self) -> Mapping[str, str]: ...


def where(
    session: Session, cluster: str | None, context: str | None, namespace: str | None
) -> config.Where:
    """Where the job is that is meant."""
    given = {"cluster": cluster, "kube_context": context, "namespace": namespace}
    return config.where(given, session.environ)


def _with_master(session: Session, name: str, there: config.Where) -> Any:
    """The job, which is not taken over: this command ends at once, and would take it along."""
    api = session.api()
    if there.cluster != "local":
        return api.attach(name, there)
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
def list_(
    ctx: typer.Context,
    as_json: bool = _JSON,
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """List the jobs that run on this machine, or those of a cluster's namespace."""
    session: Session = ctx.obj
    there = where(session, cluster, kube_context, namespace)
    found = session.api().jobs(*_unless_here(there))
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
        here = there.cluster == "local"
        place = "run on this machine" if here else "are in the cluster's namespace"
        display.Lines(session.err).write(f"No jobs {place}.")
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
def status(
    ctx: typer.Context,
    name: str = NAME,
    as_json: bool = _JSON,
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """Show how a job stands, its workers and what was decided."""
    session: Session = ctx.obj
    job = _with_master(session, name, where(session, cluster, kube_context, namespace))
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
    name: str = NAME,
    num_workers: int = typer.Option(..., "--num_workers", help="Workers that there should be."),
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """Change the number of a job's workers while it runs."""
    session: Session = ctx.obj
    there = where(session, cluster, kube_context, namespace)
    _with_master(session, name, there).scale(num_workers)
    display.Lines(session.out).write(
        f"Job {name} goes on with {display.count(num_workers, 'worker')}."
    )


@app.command(epilog=STOP_EXAMPLES)
def stop(
    ctx: typer.Context,
    name: str = NAME,
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """Stop a job."""
    session: Session = ctx.obj
    there = where(session, cluster, kube_context, namespace)
    job = session.api().attach(name, *_unless_here(there))
    job.cancel()
    last = job.status()
    version = last.checkpoint_version
    saved = f" Its last checkpoint is of step {version:,}." if version else ""
    display.Lines(session.out).write(f"Job {name} is {last.phase}.{saved}")


@app.command(epilog=LOGS_EXAMPLES)
def logs(
    ctx: typer.Context,
    name: str = NAME,
    worker: str = typer.Option("", "--worker", help="Of this one alone, or of `master`."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job ends."),
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """Show what a job's pods print."""
    session: Session = ctx.obj
    there = where(session, cluster, kube_context, namespace)
    out = display.Lines(session.out)

    def say(part: str, line: str) -> None:
        out.write(line if worker else f"{part}: {line}")

    session.api().logs(name, there, worker, follow=follow, say=say)


@app.command(epilog=DELETE_EXAMPLES)
def delete(
    ctx: typer.Context,
    name: str = NAME,
    cluster: str | None = CLUSTER,
    kube_context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
) -> None:
    """Delete a job with all that belongs to it in the cluster."""
    session: Session = ctx.obj
    session.api().delete(name, where(session, cluster, kube_context, namespace))
    display.Lines(session.out).write(f"Job {name} is deleted.")


def _unless_here(there: config.Where) -> tuple[config.Where, ...]:
    return () if there.cluster == "local" else (there,)
