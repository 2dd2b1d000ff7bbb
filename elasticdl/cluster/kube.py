"""The API of a Kubernetes cluster, as far as jobs need it."""

import contextlib
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import kubernetes.client
import kubernetes.config
import kubernetes.stream
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from elasticdl.errors import ElasticDLError, UserError

Manifest = dict[str, Any]

_DEADLINE_S = 10.0
_CONNECT_S = 3.0
_PIECE = 1 << 16

# Where objects of a kind are found.
_PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "Job": ("apis/batch/v1", "jobs"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("api/v1", "pods"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
}


class Away(ElasticDLError):
    """The API server did not answer, or could not just now; the same call may succeed later."""


class Refused(ElasticDLError):
    """The API server does not do it.

    Args:
        status: of HTTP.
        reason: one word of the server's.
        message: the server's own.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def missing(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """It exists already, or has changed meanwhile."""
        return self.status == 409


@dataclass(frozen=True)
class Place:
    """A cluster and a namespace in it, as the user's configuration names them."""

    context: str
    namespace: str


def place(environ: Mapping[str, str], context: str = "", namespace: str = "") -> Place:
    """What is meant by these names, where they are empty by the kubeconfig's defaults.

    Raises:
        UserError: there is no such context, or no configuration.
    """
    try:
        contexts, current = kubernetes.config.list_kube_config_contexts()
    except ConfigException as error:
        if _in_cluster(environ):
            return Place("in-cluster", namespace or _own_namespace())
        raise UserError(
            f"cluster: expected a kubeconfig, in ~/.kube/config or where KUBECONFIG says; got: "
            f"{error}. Use --cluster=local to run on this machine."
        ) from error
    by_name = {each["name"]: each for each in contexts}
    if context and context not in by_name:
        raise UserError(
            f"kube_context: expected one of {', '.join(sorted(by_name))}; got {context}."
        )
    chosen = by_name[context] if context else current
    return Place(
        chosen["name"], namespace or chosen.get("context", {}).get("namespace") or "default"
    )


def _in_cluster(environ: Mapping[str, str]) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environ


def _own_namespace() -> str:
    path = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


class Kube:
    """Objects of one namespace. Safe for use by several threads.

    All methods raise `Away` and `Refused`.

    Args:
        context: of the kubeconfig; empty: the service account of the pod that this runs in.
    """

    def __init__(self, context: str, namespace: str) -> None:
        self.context = context
        self.namespace = namespace
        configuration = kubernetes.client.Configuration()
        if context and context != "in-cluster":
            kubernetes.config.load_kube_config(context=context, client_configuration=configuration)
        else:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        self._configuration = configuration
        if not configuration.verify_ssl:
            # The user's configuration says so, and need not be told at each call.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        # The library's classes of objects are left aside: manifests are plain values.
        api = kubernetes.client.ApiClient(configuration)
        self._pool: Any = api.rest_client.pool_manager

    def close(self) -> None:
        self._pool.clear()

    # ---- objects -----------------------------------------------------------------------------

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        query = [("dryRun", "All")] if dry_run else []
        return self._call("POST", self._path(manifest["kind"]), body=manifest, query=query)

    def get(self, kind: str, name: str) -> Manifest:
        return self._call("GET", self._path(kind, name))

    def find(self, kind: str, name: str) -> Manifest | None:
        """The object; None: there is none."""
        try:
            return self.get(kind, name)
        except Refused as refused:
            if refused.missing:
                return None
            raise

    def objects(
        self, kind: str, selector: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        """The objects, and the version of the list, from which they can be watched."""
        query = [("labelSelector", selector)] if selector else []
        query += [("fieldSelector", fields)] if fields else []
        found = self._call("GET", self._path(kind), query=query)
        return found["items"], found["metadata"]["resourceVersion"]

    def replace(self, manifest: Manifest) -> Manifest:
        """Refused as a conflict where it has changed since it was read."""
        path = self._path(manifest["kind"], manifest["metadata"]["name"])
        return self._call("PUT", path, body=manifest)

    def patch(self, kind: str, name: str, patch: Manifest) -> Manifest:
        return self._call(
            "PATCH",
            self._path(kind, name),
            body=patch,
            content_type="application/merge-patch+json",
        )

    def delete(
        self, kind: str, name: str, *, grace_s: int | None = None, wait: bool = False
    ) -> None:
        """That it is not there is no error; what it owns goes with it.

        Args:
            grace_s: 0: at once, whatever the container does.
            wait: it stays, marked, until all that it owns is gone.
        """
        options: Manifest = {"propagationPolicy": "Foreground" if wait else "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self._call("DELETE", self._path(kind, name), body=options)
        except Refused as refused:
            if not refused.missing:
                raise

    def watch(
        self, kind: str, selector: str, version: str, timeout_s: float
    ) -> Iterator[tuple[str, Manifest]]:
        """Changes since `version`, as type and object; ends after some time, or with `Refused`
        (410) where the server does not remember so long.
        """
        query = [
            ("labelSelector", selector),
            ("watch", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(int(timeout_s))),
        ]
        with self._errors():
            response = self._response("GET", self._path(kind), query=query, timeout_s=timeout_s + 5)
            with contextlib.closing(response):
                for line in _lines(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise Refused(
                            status.get("code", 0), status.get("reason", ""), status["message"]
                        )
                    yield event["type"], event["object"]

    def log(self, pod: str, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """Pieces of what its container has printed, as they come."""
        query = [("follow", "true")] if follow else []
        query += [("tailLines", str(tail))] if tail is not None else []
        with self._errors():
            response = self._response(
                "GET",
                f"{self._path('Pod', pod)}/log",
                query=query,
                timeout_s=None if follow else _DEADLINE_S,
            )
            with contextlib.closing(response):
                yield from response.stream(_PIECE, decode_content=False)

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        """Whether this user may do that in the namespace."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": verb,
                    "resource": resource,
                    "group": group,
                    "subresource": subresource,
                }
            },
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(self._call("POST", path, body=review)["status"]["allowed"])

    def platforms(self) -> set[str]:
        """Of the nodes, such as linux/amd64."""
        nodes = self._call("GET", "/api/v1/nodes")["items"]
        infos = [node["status"]["nodeInfo"] for node in nodes]
        return {f"{info['operatingSystem']}/{info['architecture']}" for info in infos}

    def connection(self, pod: str, port: int) -> Any:
        """A connection to a port of a pod, through the API server: what a socket can do."""
        # The library patches the client that it is given for the time of the call.
        own = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(self._configuration))
        with self._errors():
            forward = kubernetes.stream.portforward(
                own.connect_get_namespaced_pod_portforward,
                pod,
                self.namespace,
                ports=str(port),
            )
            return forward.socket(port)

    # ---- calls -------------------------------------------------------------------------------

    def _path(self, kind: str, name: str = "") -> str:
        group, plural = _PATHS[kind]
        path = f"/{group}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        with self._errors():
            response = self._response(
                method, path, body=body, query=query, content_type=content_type
            )
            found: Manifest = json.loads(response.data)
            response.release_conn()
            return found

    def _response(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = _DEADLINE_S,
    ) -> Any:
        """An answer that is still to be read."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # Read anew for each call: credentials of clouds are short-lived.
        settings: Any = self._configuration.auth_settings()
        for setting in settings.values():
            headers[setting["key"]] = setting["value"]
        url = self._configuration.host + path
        response = self._pool.request(
            method,
            f"{url}?{urllib.parse.urlencode(query)}" if query else url,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=timeout_s),
            retries=False,
            preload_content=False,
        )
        if not 200 <= response.status < 300:
            raise _refused(response.status, response.reason or "", response.data)
        return response

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            # Of a forwarded connection.
            raise Away(f"{self._configuration.host}: {_reason(error)}") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Away(f"{self._configuration.host}: {_reason(error)}") from error


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for piece in response.stream(_PIECE, decode_content=False):
        *whole, rest = (rest + piece).split(b"\n")
        yield from filter(None, whole)


def _refused(status: int, reason: str, body: bytes) -> ElasticDLError:
    message = reason
    with contextlib.suppress(ValueError, AttributeError):
        said = json.loads(body)
        reason, message = said.get("reason", reason), said.get("message", message)
    if status == 429 or status >= 500:
        return Away(message)
    return Refused(status, reason, message)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).split("\n")[0]
