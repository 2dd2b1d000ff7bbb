"""What clusters are like, and how users are with them: room that is granted, accounts and volumes
of others; jobs that are left, watched, scaled, stopped and deleted.
"""

import contextlib
import json
import signal
import subprocess
import urllib.request

import kubernetes
import numpy as np
import pytest

from elasticdl.cluster import kube, manifests
from elasticdl.model import artifact
from tests.cluster.conftest import POD, until
from tests.cluster.test_elastic import COUNT, RECORDS, counts
from tests.jobs.support import EPOCHS


@pytest.fixture
def count(job, volume, plan):
    """Trains the model that counts, under the plan's faults."""

    def count(*arguments, **options):
        data = volume.numbered(RECORDS)
        params = f"--params=records={RECORDS}, {plan.param}"
        return job("faulty.Counting", data, params, *COUNT, *arguments, **options)

    return count


@pytest.fixture
def create(namespace):
    """Creates objects of any kind, which are there until the test ends."""
    client = kubernetes.dynamic.DynamicClient(kubernetes.client.ApiClient())
    created = []

    def create(api_version, kind, name, **content):
        resource = client.resources.get(api_version=api_version, kind=kind)
        place = {"namespace": namespace} if resource.namespaced else {}
        body = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}
        resource.create(body=body, **place)
        created.append((resource, name, place))

    yield create
    for resource, name, place in reversed(created):
        with contextlib.suppress(kubernetes.dynamic.exceptions.NotFoundError):
            resource.delete(name=name, **place)


def once_each(it):
    return np.array_equal(counts(it.succeeds()), np.full(RECORDS, EPOCHS))


# ---- what is granted ----------------------------------------------------------------------------


def test_a_quota_leaves_room_for_one_worker_and_later_for_both(count, plan, create, api):
    create("v1", "ResourceQuota", "small", spec={"hard": {"pods": "2"}})
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count()
    plan.until_fired()
    (note,) = until(lambda: [each for each in it.notes() if "pending" in each])
    assert note.startswith("worker-1 is pending: a quota does not allow its pod (")
    assert "exceeded quota: small" in note
    kubernetes.client.CoreV1Api().delete_namespaced_resource_quota("small", api.namespace)
    until(lambda: len(it.running()) == 2)
    plan.go("go")
    assert once_each(it)


def test_what_an_administrator_has_made_is_enough_for_who_may_not_make_roles(
    elasticdl, image, volume, api
):
    name = f"{api.namespace}-granted"
    printed = elasticdl("admin", "manifests", f"--namespace={name}", "--pods=3").end()
    apply = ["kubectl", "apply", "--filename=-"]
    subprocess.run(apply, input=printed.out, text=True, check=True, capture_output=True)
    try:
        ended = elasticdl(
            *(
                "train",
                "--cluster=kubernetes",
                f"--namespace={name}",
                "--service_account=elasticdl",
            ),
            *(f"--image={image}", "--model_def=digits.Dense", f"--data={volume.digits()}"),
            *(f"--output={POD}/output", "--num_workers=2", "--quiet", volume.flag),
            *("--worker_requests=cpu=100m,memory=1Gi", "--worker_limits=cpu=1,memory=2Gi"),
        ).end()
        assert ended.status == 0, ended.err
        roles = kubernetes.client.RbacAuthorizationV1Api().list_namespaced_role(name).items
        assert [role.metadata.name for role in roles] == ["elasticdl"]
    finally:
        kubernetes.client.CoreV1Api().delete_namespace(name)


def test_data_lies_on_a_claim_and_settings_of_pods_in_a_file_and_a_secret(
    count, plan, create, api, volume, tmp_path
):
    claim = f"{api.namespace}-data"
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    create(
        *("v1", "PersistentVolume", claim),
        spec={
            **common,
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": str(volume.directory)},
            "persistentVolumeReclaimPolicy": "Retain",
        },
    )
    create(
        *("v1", "PersistentVolumeClaim", claim),
        spec={**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": claim},
    )
    create("v1", "Secret", "storage", stringData={"PLACE_KEY": "secret"})
    template = tmp_path / "pods.yaml"
    template.write_text(
        "worker:\n  metadata:\n    annotations: {example.com/team: mine}\n"
        "  spec:\n    containers:\n      - name: worker\n"
        "        env:\n          - {name: OWN, value: here}\n"
    )
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count(
        f"--volumes=claim={claim},path={POD}",
        f"--pod_template={template}",
        "--storage_secret=storage",
        "--env=MODE=quick",
        "--node_selector=kubernetes.io/os=linux",
        num_workers=1,
    )
    plan.until_fired()
    ((_, pod),) = it.running().items()
    assert pod["metadata"]["annotations"]["example.com/team"] == "mine"
    seen = subprocess.run(
        ["kubectl", "exec", f"--namespace={api.namespace}", pod["metadata"]["name"], "--", "env"],
        text=True,
        check=True,
        capture_output=True,
    ).stdout.splitlines()
    assert {"OWN=here", "PLACE_KEY=secret", "MODE=quick"} <= set(seen)
    plan.go("go")
    assert once_each(it)


# ---- the user's side ----------------------------------------------------------------------------


@pytest.fixture
def place(api):
    return ("--cluster=kubernetes", f"--namespace={api.namespace}")


def test_ctrl_c_detaches_and_the_job_is_watched_scaled_and_stopped(
    count, plan, elasticdl, place, volume
):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count("--epochs=100000")
    plan.until_fired()
    it.command.process.send_signal(signal.SIGINT)
    left = it.command.end()
    assert left.status == 130
    back = f"Job {it.name} goes on. `elasticdl job watch {it.name}` shows it again"
    assert back in left.out + left.err

    watching = elasticdl("job", "watch", it.name, *place, "--json")
    plan.go("go")
    watching.until_running()
    scaled = elasticdl("job", "scale", it.name, "--num_workers=3", *place).end()
    assert scaled.out == f"Job {it.name} goes on with 3 workers.\n", scaled
    until(lambda: len(it.running()) == 3)
    stopped = elasticdl("job", "stop", it.name, *place).end()
    assert stopped.out.startswith(f"Job {it.name} is cancelled."), stopped
    assert "Its last checkpoint is of step" in stopped.out
    ended = watching.end()
    assert ended.status != 0
    assert "Traceback" not in ended.err
    until(lambda: not it.running(""))


def test_a_detached_job_s_status_opens_in_a_browser_and_its_name_is_taken(
    count, plan, elasticdl, place
):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count("--detach")
    ended = it.command.end()
    assert ended.status == 0, ended.err
    plan.until_fired()
    again = count(f"--job_name={it.name}").command.end()
    assert again.status == 2
    assert "job_name: expected a name that no job in namespace" in again.out + again.err
    opened = elasticdl("dashboard", it.name, *place)
    url = opened.process.stdout.readline().strip()
    with urllib.request.urlopen(url) as answer:
        status = json.load(answer)
    assert status["job_name"] == it.name
    assert [worker["phase"] for worker in status["workers"]] == ["member", "member"]
    opened.process.send_signal(signal.SIGINT)
    assert opened.end().status == 0
    plan.go("go")
    until(lambda: artifact.TRAINED_MODEL in {path.name for path in it.output.glob("*")})
    assert np.array_equal(counts(it.output), np.full(RECORDS, EPOCHS))


def test_workers_say_that_what_they_exchange_is_plaintext(count, plan, elasticdl, place):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count()
    plan.until_fired()
    status = elasticdl("job", "status", it.name, *place).end()
    assert "plaintext" in status.out
    plan.go("go")
    assert once_each(it)


def test_nothing_of_a_job_is_left_when_it_is_deleted(count, plan, elasticdl, place, api):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count()
    plan.until_fired()
    elasticdl("job", "delete", it.name, *place).end()
    name = manifests.object_name(it.name)

    kinds = "pods,jobs,services,configmaps,secrets,leases,roles,rolebindings,serviceaccounts"
    get = ("kubectl", "get", f"--namespace={api.namespace}", f"{kinds},networkpolicies", "-o=name")

    def left():
        listed = subprocess.run(get, text=True, check=True, capture_output=True)
        return [line for line in listed.stdout.split() if name in line]

    until(lambda: not left())
    with contextlib.suppress(kube.Refused):
        it.end()
