"""A job on Kubernetes as its user sees it: submitted, found, reached, followed, deleted."""

import base64
import contextlib
import getpass
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf import json_format

from elasticdl.cluster import kube, manifests, podset
from elasticdl.config import JobConfig
from elasticdl.errors import UserError
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc

Manifest = dict[str, Any]

_PIECE = 1 << 16
_OVER = ("succeeded", "failed", "cancelled")


# ---- submission -------------------------------------------------------------------------------


def submitter() -> str:
    """Who submits, as a label's value has it; empty where that is not known."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:63].strip("-_.")


def patch(path: str) -> dict[str, Manifest]:
    """What a pod template's file adds to the pods: role → a part of a pod's manifest.

    Raises:
        UserError: it cannot be read, or is none.
    """
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"pod_template: {path}: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        where = str(error).split("\n")[0]
        raise UserError(f"pod_template: {path}: expected YAML; got: {where}.") from error
    fine = isinstance(content, dict) and all(isinstance(each, dict) for each in content.values())
    if not fine or content.keys() - {"master", "worker"}:
        raise UserError(
            f"pod_template: {path}: expected a mapping with the keys master and worker, each with "
            "a part of a pod's manifest (metadata, spec)."
        )
    return dict(content)


def as_yaml(objects: list[Manifest]) -> str:
    """What `kubectl apply` takes."""
    return yaml.safe_dump_all(objects, sort_keys=False)


def submit(api: kube.Kube, submission: manifests.Submission) -> None:
    """Creates the job's objects, or none.

    Raises:
        UserError: the name is taken, something is not allowed or not valid.
        kube.Away
    """
    name = submission.name
    if api.find("Job", name) is not None:
        raise taken(api, submission.config.job_name)
    created: list[Manifest] = []
    try:
        for manifest in manifests.objects(submission):
            created.append(_created(api, manifest))
        job = created.pop()
        _give_to(api, job, created)
    except BaseException:
        for manifest in reversed(created):
            with contextlib.suppress(kube.Away, kube.Refused):
                api.delete(manifest["kind"], manifest["metadata"]["name"])
        raise


def taken(api: kube.Kube, job_name: str) -> UserError:
    return UserError(
        f"job_name: expected a name that no job in namespace {api.namespace} has; got {job_name}. "
        f"Choose another one, or remove that job with `elasticdl job delete {job_name}`."
    )


def _created(api: kube.Kube, manifest: Manifest) -> Manifest:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    try:
        return {**api.create(manifest), "kind": kind}
    except kube.Refused as refused:
        if refused.conflict:
            # Left by a submission that was interrupted: nothing owns it.
            api.delete(kind, name)
            return {**api.create(manifest), "kind": kind}
        if refused.status == 403 and "exceeded quota" in refused.message:
            raise UserError(f"quota: {refused.message}.") from refused
        if refused.status == 403:
            hint = (
                " Ask an administrator for an account (`elasticdl admin manifests` prints it), and "
                "give its name with --service_account."
                if kind in ("Role", "RoleBinding", "ServiceAccount")
                else " Ask an administrator for the right."
            )
            raise UserError(
                f"kubernetes: expected the right to create a {kind} in namespace "
                f"{api.namespace}; got: {refused.message}.{hint}"
            ) from refused
        if refused.missing:
            raise UserError(
                f"namespace: expected one that exists; got {api.namespace}: {refused.message}."
            ) from refused
        raise UserError(f"kubernetes: {kind} {name}: {refused.message}.") from refused


def _give_to(api: kube.Kube, job: Manifest, others: list[Manifest]) -> None:
    """Has the others deleted with the Job."""
    owner = podset.owner(job)
    for each in others:
        patch = {"metadata": {"ownerReferences": [owner]}}
        api.patch(each["kind"], each["metadata"]["name"], patch)


# ---- what there is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A job in the cluster.

    Args:
        phase: as in a job's status, or pending, while no master has begun.
        reason: why, in words, as far as the cluster knows.
        last: its last status, once it is over.
    """

    job_name: str
    kind: str
    output: str
    phase: str
    reason: str = ""
    last: pb.JobStatus | None = None


def find(api: kube.Kube, job_name: str) -> Found | None:
    """The job of this name; None: there is none."""
    job = api.find("Job", manifests.object_name(job_name))
    return None if job is None else _found(api, job)


def jobs(api: kube.Kube) -> list[Found]:
    """All jobs of elasticdl in the namespace."""
    found, _ = api.objects("Job", "app.kubernetes.io/managed-by=elasticdl")
    return [_found(api, each) for each in found]


def _found(api: kube.Kube, job: Manifest) -> Found:
    metadata = job["metadata"]
    annotations = metadata.get("annotations", {})
    about = (
        metadata["labels"][manifests.JOB_LABEL],
        annotations.get(manifests.KIND_ANNOTATION, ""),
        annotations.get(manifests.OUTPUT_ANNOTATION, ""),
    )
    said = annotations.get(manifests.STATUS_ANNOTATION)
    if said:
        last = status_of(json.loads(said))
        return Found(*about, last.phase, last.reason, last)
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] == "Failed" and condition["status"] == "True":
            return Found(*about, "failed", condition.get("message", ""))
    masters, _ = api.objects("Pod", manifests.selector(about[0], "master"))
    running = [each for each in masters if each.get("status", {}).get("phase") == "Running"]
    if running:
        return Found(*about, "running", "The master is starting.")
    reasons = [reason for each in masters if (reason := podset.pending(each))]
    if reasons:
        return Found(*about, "pending", f"The master is pending: {reasons[-1]}.")
    ended = sorted(
        (each for each in masters if each.get("status", {}).get("phase") == "Failed"),
        key=lambda pod: str(pod["metadata"]["creationTimestamp"]),
    )
    if ended:
        how = podset.ending(ended[-1])
        words = (how.words.strip().splitlines() or [""])[-1]
        times = f"{len(ended)} times, last " if len(ended) > 1 else ""
        said = f"; its log ends: {words}" if words else ""
        return Found(
            *about, "pending", f"The master ended {times}by {how}{said}. Another one is started."
        )
    return Found(*about, "pending")


def status_of(said: dict[str, Any]) -> pb.JobStatus:
    """The status that a master has left as JSON."""
    status = pb.JobStatus()
    known = {
        name: value
        for name, value in said.items()
        if name in pb.JobStatus.DESCRIPTOR.fields_by_name and value is not None
    }

    json_format.ParseDict(known, status, ignore_unknown_fields=True)
    return status


def security(api: kube.Kube, job_name: str) -> rpc.Security:
    """What the job's master expects to be shown.

    Raises:
        UserError: this user may not know it.
    """
    try:
        secret = api.get("Secret", f"{manifests.object_name(job_name)}-worker")
    except kube.Refused as refused:
        raise UserError(
            f"kubernetes: expected the right to read the job's Secret; got: {refused.message}."
        ) from refused
    files = {name: base64.b64decode(content) for name, content in secret["data"].items()}
    return rpc.Security.of(files)


def delete(api: kube.Kube, job_name: str) -> None:
    """Deletes the job with all that belongs to it."""
    api.delete("Job", manifests.object_name(job_name))


def config_of(api: kube.Kube, job_name: str) -> JobConfig:
    """The job's settings, as its master has them."""
    definition = api.get("ConfigMap", manifests.object_name(job_name))
    return JobConfig.from_json(definition["data"]["config.json"])


# ---- the way to the master --------------------------------------------------------------------


class Forward:
    """A port of this machine behind which the job's present master is, until `close`."""

    def __init__(self, api: kube.Kube, job_name: str, port: int) -> None:
        self._api = api
        self._job_name = job_name
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="forward", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        """Lets both ends of one connection talk to each other."""
        with contextlib.closing(near):
            try:
                pod = self._master()
                far = self._api.connection(pod, self._port) if pod else None
            except (kube.Away, kube.Refused):
                return
            if far is None:
                return
            with contextlib.closing(far):
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()

    def _master(self) -> str:
        """The pod of the present master; empty: none is ready."""
        pods, _ = self._api.objects("Pod", manifests.selector(self._job_name, "master"))
        ready = [
            pod
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in pod.get("status", {}).get("conditions", ())
            )
        ]
        ready.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        return str(ready[-1]["metadata"]["name"]) if ready else ""


def _pump(source: Any, target: Any) -> None:
    """Passes on what comes from the one to the other, until either has ended."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


# ---- logs -------------------------------------------------------------------------------------


def logs(
    api: kube.Kube, job_name: str, worker: str, *, follow: bool, say: Callable[[str, str], None]
) -> None:
    """Passes the lines that the job's pods have printed, with the pod's part in the job.

    Args:
        worker: of this one alone, or of `master`; empty: of all that there are now.

    Raises:
        UserError: there is no such pod.
        kube.Away
    """
    pods = [
        (name, pod["metadata"]["name"])
        for pod in api.objects("Pod", manifests.selector(job_name))[0]
        if (name := pod["metadata"]["labels"].get(manifests.WORKER_LABEL, "master"))
        and worker in ("", name)
    ]
    if not pods:
        raise UserError(
            f"worker: expected a pod of job {job_name} that still exists; got "
            f"{worker or 'none at all'}."
        )
    threads = [
        threading.Thread(target=_log, args=(api, name, pod, follow, say), daemon=True)
        for name, pod in sorted(pods)
    ]
    for thread in threads:
        thread.start()
        if not follow:
            thread.join()
    for thread in threads:
        thread.join()


def _log(
    api: kube.Kube, name: str, pod: str, follow: bool, say: Callable[[str, str], None]
) -> None:
    try:
        for line in _text_lines(api.log(pod, follow=follow)):
            say(name, line)
    except (kube.Away, kube.Refused) as error:
        say(name, f"({error})")


def _text_lines(pieces: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
