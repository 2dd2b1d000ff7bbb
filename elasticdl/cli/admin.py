"""argv → what an administrator of a cluster is to create."""

from typing import Any, Protocol

import typer

MANIFESTS_EXAMPLES = """
Example:

  elasticdl admin manifests --namespace=training --cpu=64 --memory=256Gi | kubectl apply -f -
"""

app = typer.Typer(help="For administrators of a cluster.", no_args_is_help=True)


class Session(Protocol):
    """The part of `main.Session` that is used here."""

    @property
    def out(self) -> Any: ...


@app.callback()
def _admin() -> None:
    """For administrators of a cluster."""


@app.command(epilog=MANIFESTS_EXAMPLES)
def manifests(
    ctx: typer.Context,
    namespace: str = typer.Option("elasticdl", "--namespace", help="That jobs are to run in."),
    service_account: str = typer.Option(
        "elasticdl", "--service_account", help="Of masters, whose users may not create roles."
    ),
    cpu: str = typer.Option("16", "--cpu", help="CPUs of all jobs together."),
    memory: str = typer.Option("64Gi", "--memory", help="Memory of all jobs together."),
    pods: int = typer.Option(100, "--pods", help="Pods of all jobs together."),
) -> None:
    """Print a namespace, an account with its rights, and a quota, as YAML."""
    # With it comes the client of Kubernetes, which other commands do without.
    from elasticdl.api import kubernetes

    session: Session = ctx.obj
    print(
        kubernetes.administration(namespace, service_account, cpu, memory, pods),
        file=session.out,
        end="",
    )
