"""A job → the Kubernetes objects that it consists of, as plain values."""

import base64
import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elasticdl import config as configs
from elasticdl.cluster import certificates
from elasticdl.wire import rpc

Manifest = dict[str, Any]

CONTROL_PORT = 7000
STATUS_PORT = 8080
JOB_LABEL = "elasticdl.org/job"
ROLE_LABEL = "elasticdl.org/role"
WORKER_LABEL = "elasticdl.org/worker"
STATUS_ANNOTATION = "elasticdl.org/status"
OUTPUT_ANNOTATION = "elasticdl.org/output"
KIND_ANNOTATION = "elasticdl.org/kind"
MODEL_ZOO = "/model_zoo"

_DEFINITION = "/etc/elasticdl/job"
_SECURITY = "/etc/elasticdl/security"
_STORAGE = "/var/run/secrets/elasticdl-storage"
_USER = 1000  # in elasticdl's images
_GRACE_PERIOD_S = 30
_LOST_NODE_S = 10
_FOREVER = 1_000_000  # times that a master may be replaced
_KUEUE = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Submission:
    """A job as it is submitted.

    Args:
        config: with the paths that the containers see.
        image: that its containers run.
        submitter: who submits it; a label's value, or empty.
        patch: what the user adds to the pods: role → a part of a pod's manifest.
    """

    config: configs.JobConfig
    namespace: str
    image: str
    credentials: certificates.Credentials
    submitter: str = ""
    patch: Mapping[str, Manifest] | None = None

    @property
    def name(self) -> str:
        """Of its objects."""
        return object_name(self.config.job_name)


def object_name(job_name: str) -> str:
    return f"elasticdl-{job_name}"


def selector(job_name: str, role: str = "") -> str:
    """Selects the job's pods, of one role or all."""
    labels = {JOB_LABEL: job_name, **({ROLE_LABEL: role} if role else {})}
    return ",".join(f"{name}={value}" for name, value in labels.items())


def objects(submission: Submission) -> list[Manifest]:
    """What is to be created, in this order; the last one, the Job, is to own the others."""
    config = submission.config
    account = [] if config.service_account else _account(submission)
    ingress = [_ingress(submission)] if config.ingress_host else []
    return [
        *account,
        _secret(submission, "master", submission.credentials.master),
        _secret(submission, "worker", submission.credentials.others),
        _definition(submission),
        _lease(submission),
        _service(submission),
        *ingress,
        *_network_policies(submission),
        _job(submission),
    ]


def worker_pod(template: Manifest, worker: str, master: str) -> Manifest:
    """The pod of one worker.

    Args:
        template: what `objects` has put into the job's definition.
        master: the master's address, host:port.
    """
    pod = copy.deepcopy(template)
    pod["metadata"]["name"] = f"{template['metadata']['name']}-{worker}"
    pod["metadata"]["labels"][WORKER_LABEL] = worker
    (container,) = (each for each in pod["spec"]["containers"] if each["name"] == "worker")
    container["command"] = [*_PYTHON, "elasticdl.worker", master, worker, _SECURITY]
    return pod


_PYTHON = ("python", "-P", "-m")


# ---- identity ---------------------------------------------------------------------------------


def _metadata(submission: Submission, suffix: str = "", role: str = "") -> Manifest:
    return {
        "name": submission.name + suffix,
        "namespace": submission.namespace,
        "labels": _labels(submission, role),
    }


def _labels(submission: Submission, role: str = "") -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "elasticdl",
        "app.kubernetes.io/instance": submission.config.job_name,
        "app.kubernetes.io/managed-by": "elasticdl",
        JOB_LABEL: submission.config.job_name,
    }
    if submission.submitter:
        labels["elasticdl.org/submitter"] = submission.submitter
    if role:
        labels[ROLE_LABEL] = role
        labels["app.kubernetes.io/component"] = role
    return labels


def rules(name: str = "") -> list[Manifest]:
    """What a master may do, to be granted in its namespace.

    Args:
        name: of the job's objects; empty: of those of all jobs.
    """
    own = {"resourceNames": [name]} if name else {}
    return [
        {
            "apiGroups": [""],
            "resources": ["pods"],
            "verbs": ["create", "delete", "get", "list", "watch"],
        },
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        # A preempted pod's cause stands in an event alone, where Kubernetes is older than 1.26.
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get"], **own},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "patch"], **own},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "verbs": ["get", "update"],
            **own,
        },
    ]


def _account(submission: Submission) -> list[Manifest]:
    metadata = _metadata(submission)
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": rules(submission.name),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": submission.name,
            },
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "name": submission.name,
                    "namespace": submission.namespace,
                }
            ],
        },
    ]


def _secret(submission: Submission, role: str, security: rpc.Security) -> Manifest:
    content = {
        "ca.crt": security.authority,
        "tls.crt": security.certificate,
        "tls.key": security.key,
        "token": security.token.encode(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(submission, f"-{role}"),
        "type": "Opaque",
        "data": {name: base64.b64encode(each).decode() for name, each in content.items()},
    }


def _definition(submission: Submission) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(submission),
        "data": {
            "config.json": submission.config.to_json(),
            "worker.json": json.dumps(_worker_template(submission), sort_keys=True),
        },
    }


def _lease(submission: Submission) -> Manifest:
    """By which masters succeed each other; how many there were is the term."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": _metadata(submission),
        "spec": {"leaseTransitions": 0},
    }


# ---- network ----------------------------------------------------------------------------------


def _service(submission: Submission) -> Manifest:
    metadata = _metadata(submission)
    metadata["annotations"] = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(STATUS_PORT),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {JOB_LABEL: submission.config.job_name, ROLE_LABEL: "master"},
            "ports": [
                {"name": "control", "port": CONTROL_PORT, "targetPort": CONTROL_PORT},
                {"name": "status", "port": STATUS_PORT, "targetPort": STATUS_PORT},
            ],
        },
    }


def _ingress(submission: Submission) -> Manifest:
    backend = {"service": {"name": submission.name, "port": {"name": "status"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": _metadata(submission),
        "spec": {
            "rules": [
                {
                    "host": submission.config.ingress_host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ]
        },
    }


def _network_policies(submission: Submission) -> list[Manifest]:
    """The collective's ports, and the master's for control, are for the job's pods alone."""
    own = {"podSelector": {"matchLabels": {JOB_LABEL: submission.config.job_name}}}

    def policy(role: str, ingress: list[Manifest]) -> Manifest:
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(submission, f"-{role}"),
            "spec": {
                "podSelector": {
                    "matchLabels": {
                        JOB_LABEL: submission.config.job_name,
                        ROLE_LABEL: role,
                    }
                },
                "policyTypes": ["Ingress"],
                "ingress": ingress,
            },
        }

    status = {"ports": [{"protocol": "TCP", "port": STATUS_PORT}]}
    return [policy("master", [{"from": [own]}, status]), policy("worker", [{"from": [own]}])]


# ---- pods -------------------------------------------------------------------------------------


def _job(submission: Submission) -> Manifest:
    config = submission.config
    metadata = _metadata(submission)
    metadata["annotations"] = {OUTPUT_ANNOTATION: config.output, KIND_ANNOTATION: config.kind}
    pod = _pod(submission, "master", config.master_requests, config.master_limits)
    pod["metadata"].pop("name")
    pod["metadata"].pop("namespace")
    spec = pod["spec"]
    spec["serviceAccountName"] = config.service_account or submission.name
    spec["automountServiceAccountToken"] = True
    (container,) = (each for each in spec["containers"] if each["name"] == "master")
    container["command"] = [*_PYTHON, "elasticdl.master", _DEFINITION, _SECURITY]
    container["ports"] = [
        {"name": "control", "containerPort": CONTROL_PORT},
        {"name": "status", "containerPort": STATUS_PORT},
    ]
    # Ready as soon as it listens: workers and whoever watches find it by the Service.
    container["readinessProbe"] = {
        "tcpSocket": {"port": CONTROL_PORT},
        "periodSeconds": 1,
        "failureThreshold": 3,
    }
    container["volumeMounts"].append({"name": "definition", "mountPath": _DEFINITION})
    spec["volumes"].append({"name": "definition", "configMap": {"name": submission.name}})
    if config.master_priority_class:
        spec["priorityClassName"] = config.master_priority_class
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": _FOREVER,
            "ttlSecondsAfterFinished": math.ceil(config.keep_s),
            "template": merged(pod, (submission.patch or {}).get("master", {})),
        },
    }


def _worker_template(submission: Submission) -> Manifest:
    config = submission.config
    limits = config.worker_limits or config.worker_requests
    pod = _pod(submission, "worker", config.worker_requests, limits)
    pod["spec"]["automountServiceAccountToken"] = False
    if config.priority_class:
        pod["spec"]["priorityClassName"] = config.priority_class
    if config.worker_gpus:
        (container,) = pod["spec"]["containers"]
        container["resources"]["limits"]["nvidia.com/gpu"] = str(config.worker_gpus)
    template = merged(pod, (submission.patch or {}).get("worker", {}))
    return {"apiVersion": "v1", "kind": "Pod", **template}


def _pod(submission: Submission, role: str, requests: str, limits: str) -> Manifest:
    """What master and workers have in common; valid under the Pod Security Standard restricted."""
    config = submission.config
    metadata = _metadata(submission, role=role)
    if config.queue:
        metadata["labels"][_KUEUE] = config.queue
    mounts = [
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "security", "mountPath": _SECURITY, "readOnly": True},
    ]
    volumes: list[Manifest] = [
        {"name": "scratch", "emptyDir": {}},
        {
            "name": "security",
            "secret": {"secretName": f"{submission.name}-{role}", "defaultMode": 0o440},
        },
    ]
    environment_from = []
    for number, volume in enumerate(configs.parse_volumes(config.volumes)):
        source: Manifest = (
            {"persistentVolumeClaim": {"claimName": volume.claim}}
            if volume.claim
            else {"hostPath": {"path": volume.host_path}}
        )
        volumes.append({"name": f"data-{number}", **source})
        mount: Manifest = {"name": f"data-{number}", "mountPath": volume.path}
        if volume.sub_path:
            mount["subPath"] = volume.sub_path
        if volume.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    if config.storage_secret:
        secret = {"secretName": config.storage_secret, "defaultMode": 0o440}
        volumes.append({"name": "storage", "secret": secret})
        mounts.append({"name": "storage", "mountPath": _STORAGE, "readOnly": True})
        environment_from.append({"secretRef": {"name": config.storage_secret}})
    container: Manifest = {
        "name": role,
        "image": submission.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": name, "value": value} for name, value in sorted(_environment(config).items())
        ],
        "resources": {
            "requests": configs.parse_resources(requests, f"{role}_requests"),
            "limits": configs.parse_resources(limits, f"{role}_limits"),
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # What a container has printed last is told as the reason of its end.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if environment_from:
        container["envFrom"] = environment_from
    spec: Manifest = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_PERIOD_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
        "tolerations": [*_lost_node(), *_tolerations(config)],
    }
    selector = dict(configs.parse_pairs(config.node_selector, "node_selector"))
    if selector:
        spec["nodeSelector"] = selector
    secrets = [name.strip() for name in config.image_pull_secrets.split(",") if name.strip()]
    if secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in secrets]
    return {"metadata": metadata, "spec": spec}


def _environment(config: configs.JobConfig) -> dict[str, str]:
    return {
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": "1",
        **dict(configs.parse_pairs(config.env, "env")),
    }


def _lost_node() -> list[Manifest]:
    """A pod on a node that is lost is given up soon: its place is wanted elsewhere."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _LOST_NODE_S,
        }
        for state in ("not-ready", "unreachable")
    ]


def _tolerations(config: configs.JobConfig) -> list[Manifest]:
    found = []
    for each in configs.parse_tolerations(config.tolerations):
        toleration = {"key": each.name, "operator": "Exists"}
        if each.value:
            toleration |= {"operator": "Equal", "value": each.value}
        if each.effect:
            toleration["effect"] = each.effect
        found.append(toleration)
    return found


# ---- patches ----------------------------------------------------------------------------------


def merged(manifest: Manifest, patch: Mapping[str, Any]) -> Manifest:
    """The manifest with a patch in it: objects are merged, None removes, lists of named things are
    merged by their names, other lists are replaced.
    """
    result = dict(manifest)
    for key, value in patch.items():
        before = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(before, dict) and isinstance(value, Mapping):
            result[key] = merged(before, value)
        elif before is not None and _named(before) and _named(value):
            result[key] = _merged_by_name(before, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(e, Mapping) and "name" in e for e in value)


def _merged_by_name(before: list[Manifest], patch: list[Manifest]) -> list[Manifest]:
    by_name = {each["name"]: each for each in before}
    for each in patch:
        by_name[each["name"]] = merged(by_name.get(each["name"], {}), each)
    return list(by_name.values())


# ---- for an administrator ---------------------------------------------------------------------


def administration(
    namespace: str, account: str, cpu: str, memory: str, pods: int
) -> list[Manifest]:
    """What an administrator creates once for people who may not create roles themselves."""
    labels = {"app.kubernetes.io/name": "elasticdl", "app.kubernetes.io/managed-by": "elasticdl"}
    metadata = {"name": account, "namespace": namespace, "labels": labels}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace,
                "labels": {**labels, "pod-security.kubernetes.io/enforce": "restricted"},
            },
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": rules(),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": account,
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": metadata,
            "spec": {
                "hard": {
                    "requests.cpu": cpu,
                    "requests.memory": memory,
                    "limits.cpu": cpu,
                    "limits.memory": memory,
                    "pods": str(pods),
                }
            },
        },
    ]
