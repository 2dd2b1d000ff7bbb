"""A namespace of a real Kubernetes for the tests, an image in its registry, and a volume."""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
import threading
import time

import kubernetes
import numpy as np
import psutil
import pytest
import yaml
from sklearn import datasets as sklearn_datasets

from elasticdl.cluster import image as images
from elasticdl.cluster import kube, manifests
from tests.jobs import faults, support

WAIT_S = 120.0
POD = "/data"  # where the pods see the volume


def pytest_collection_modifyitems(items):
    """One cluster, and two cores: a test that starts jobs has it to itself."""
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def registry():
    """The registry that both this machine and the nodes reach."""
    found = os.environ.get("ELASTICDL_TEST_REGISTRY", "")
    if not found or not os.environ.get("KUBECONFIG"):
        missing = "KUBECONFIG and ELASTICDL_TEST_REGISTRY say which cluster to test on"
        if os.environ.get("ELASTICDL_TEST_CLUSTER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def namespace(registry):
    """A namespace that is there for these tests alone."""
    kubernetes.config.load_kube_config()
    core = kubernetes.client.CoreV1Api()
    name = f"elasticdl-test-{secrets.token_hex(3)}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture(scope="session")
def api(namespace):
    """What the tests see of the cluster, and do to it."""
    place = kube.place(os.environ, "", namespace)
    api = kube.Kube(place.context, namespace)
    yield api
    api.close()


@pytest.fixture
def volume():
    """A directory of the nodes, which the containers' user may write."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="elasticdl-test-"))
    directory.chmod(0o777)
    yield Volume(directory)
    shutil.rmtree(directory)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A directory here, and its name in the pods."""

    directory: pathlib.Path

    @property
    def flag(self):
        return f"--volumes=host_path={self.directory},path={POD}"

    def digits(self):
        """300 handwritten digits; the path in the pods."""
        bunch = sklearn_datasets.load_digits()
        for name, begin, end in (("train-0", 0, 7), ("train-1", 7, 187), ("train-2", 187, 300)):
            columns = {
                "id": np.arange(begin, end),
                "image": bunch.images[begin:end].astype(np.float32),
                "label": bunch.target[begin:end].astype(np.int64),
            }
            support.write(self.directory / f"{name}.recordio", columns)
        return f"{POD}/train-*.recordio"

    def numbered(self, count):
        """Records that are numbered from 0; the path in the pods."""
        support.write(self.directory / f"{count}.recordio", {"id": np.arange(count)})
        return f"{POD}/{count}.recordio"


class Plan(faults.Plan):
    """What is to go wrong in a job whose workers see the plan's directory under another name."""

    def __init__(self, volume):
        super().__init__(volume.directory / "plan")
        self.directory.chmod(0o777)

    @property
    def param(self):
        return f"plan={POD + '/plan'!r}"

    def until_fired(self, number=0):
        until(lambda: number in self.fired)


@pytest.fixture
def plan(volume):
    return Plan(volume)


def until(condition, timeout_s=WAIT_S):
    """Returns once the condition holds; what it came to."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        threading.Event().wait(0.05)
    return found


@pytest.fixture
def elasticdl(start, namespace):
    """Starts `elasticdl` with the cluster's namespace as that of the context."""

    def elasticdl(*arguments, environ=()):
        environ = {"KUBECONFIG": os.environ["KUBECONFIG"], **dict(environ)}
        return start(*arguments, environ=environ)

    return elasticdl


@pytest.fixture
def job(elasticdl, api, image, volume):
    """Starts a training in the cluster."""
    jobs = []

    def job(model_def, data, *arguments, num_workers=2, environ=()):
        name = f"test-{secrets.token_hex(4)}"
        command = elasticdl(
            "train",
            "--cluster=kubernetes",
            f"--namespace={api.namespace}",
            f"--image={image}",
            f"--model_def={model_def}",
            f"--data={data}",
            f"--output={POD}/output",
            f"--job_name={name}",
            f"--num_workers={num_workers}",
            "--worker_requests=cpu=100m,memory=1Gi",
            "--worker_limits=cpu=1,memory=2Gi",
            volume.flag,
            "--json",
            *arguments,
            environ=environ,
        )
        jobs.append(Running(api, name, command, volume))
        return jobs[-1]

    yield job
    for each in jobs:
        # Without an output it would go on for ever, and hold what the next test needs.
        with contextlib.suppress(kube.Refused):
            api.delete("Job", manifests.object_name(each.name))
        until(lambda each=each: not each.pods(""))


@dataclasses.dataclass
class Running:
    """A job in the cluster, and the command that follows it."""

    api: kube.Kube
    name: str
    command: support.Started
    volume: Volume

    @property
    def output(self):
        return self.volume.directory / "output"

    def pods(self, role="worker"):
        """By the workers' names, or for the master that of its pod."""
        found, _ = self.api.objects("Pod", manifests.selector(self.name, role))
        return {
            pod["metadata"]["labels"].get(manifests.WORKER_LABEL, pod["metadata"]["name"]): pod
            for pod in found
        }

    def running(self, role="worker"):
        """Those whose containers run and that nobody has told to end."""
        return {
            name: pod
            for name, pod in self.pods(role).items()
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }

    def delete(self, worker, **options):
        self.api.delete("Pod", f"{manifests.object_name(self.name)}-{worker}", **options)

    def delete_master(self):
        (name,) = self.running("master")
        self.api.delete("Pod", name)
        return name

    def end(self):
        """The command's last event, when it has ended."""
        ended = self.command.end()
        assert ended.out, ended.err
        return ended.events[-1]

    def succeeds(self):
        last = self.end()
        assert last["event"] == "result", last
        return self.output

    def events(self, event):
        path = self.output / "events.jsonl"
        if not path.exists():
            path = self.output / ".elasticdl" / "events.jsonl"
        lines = map(json.loads, path.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def steps(self):
        """Those that the history has."""
        for path in (self.output / ".elasticdl", self.output):
            with contextlib.suppress(FileNotFoundError):
                lines = list(map(json.loads, (path / "metrics.jsonl").read_text().splitlines()))
                break
        else:
            lines = []
        return max((line["version"] for line in lines if line["kind"] == "train"), default=0)

    def notes(self):
        return [line["text"] for line in self.events("note")]


@pytest.fixture(scope="session")
def image(registry, base_image, tmp_path_factory):
    """An image with the zoo of the tests."""
    zoo = tmp_path_factory.mktemp("image") / "zoo"
    shutil.copytree(support.ZOO, zoo, ignore=shutil.ignore_patterns("__pycache__"))
    (zoo / "requirements.txt").touch()
    return images.build(
        zoo, images.Options(f"{registry}/elasticdl-tests/zoo", base_image)
    ).reference


@pytest.fixture(scope="session")
def base_image(registry):
    return os.environ.get("ELASTICDL_TEST_BASE_IMAGE", f"{registry}/python:3.11-bookworm")


class ApiServer:
    """The process that answers for the cluster, where it is one on this machine.

    Args:
        up: the command that brings back what does not bear its absence.
    """

    def __init__(self, process, up):
        self._process = process
        self._up = up

    @contextlib.contextmanager
    def away(self):
        """Inside, it takes connections and answers nothing; at least for 20 seconds."""
        end = time.monotonic() + 20
        self._process.suspend()
        try:
            yield
            until(lambda: time.monotonic() > end)
        finally:
            self._process.resume()
            subprocess.run(self._up, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def api_server(registry):
    up = os.environ.get("ELASTICDL_TEST_CLUSTER_UP", "")
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "kube-apiserver" and up:
            return ApiServer(process, up)
    pytest.skip("ELASTICDL_TEST_CLUSTER_UP says how to start what a lost API server takes along")


@pytest.fixture
def urgent(api, base_image):
    """Runs a pod of high priority that asks for so much of a node."""
    scheduling = kubernetes.client.SchedulingV1Api()
    name = f"{api.namespace}-urgent"
    scheduling.create_priority_class({"metadata": {"name": name}, "value": 1_000_000})

    @contextlib.contextmanager
    def urgent(cpu):
        container = {
            "name": "urgent",
            "image": base_image,
            "command": ["sleep", "3600"],
            "resources": {"requests": {"cpu": cpu}},
        }
        spec = {
            "priorityClassName": name,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec}
        api.create(pod)
        try:
            until(lambda: api.get("Pod", "urgent")["spec"].get("nodeName"))
            yield
        finally:
            api.delete("Pod", "urgent", grace_s=0)
            until(lambda: api.find("Pod", "urgent") is None)

    yield urgent
    scheduling.delete_priority_class(name)


@pytest.fixture
def stranger(api, tmp_path):
    """The kubeconfig of an account that has no rights."""
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger"}})
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "stranger",
            "annotations": {"kubernetes.io/service-account.name": "stranger"},
        },
        "type": "kubernetes.io/service-account-token",
    }
    api.create(secret)
    token = until(lambda: api.get("Secret", "stranger").get("data", {}).get("token"))
    config = yaml.safe_load(pathlib.Path(os.environ["KUBECONFIG"]).read_text())
    config["users"] = [{"name": "stranger", "user": {"token": base64.b64decode(token).decode()}}]
    for context in config["contexts"]:
        context["context"]["user"] = "stranger"
    path = tmp_path / "stranger"
    path.write_text(yaml.safe_dump(config))
    yield str(path)
    for kind in ("Secret", "ServiceAccount"):
        api.delete(kind, "stranger")
