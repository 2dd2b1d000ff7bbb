"""A job's objects are what every Kubernetes takes, and ask for no more than is needed."""

import dataclasses
import json

import kubernetes_validate
import pytest
from kubernetes_validate import utils as versions

from elasticdl.cluster import certificates, manifests
from elasticdl.config import JobConfig

CREDENTIALS = certificates.made("digits-1")


def submission(**settings):
    patch = settings.pop("patch", None)
    config = JobConfig(
        kind="train",
        model_zoo="/model_zoo",
        model_def="digits.Digits",
        data="/data/train",
        output="/data/out",
        job_name="digits-1",
        cluster="kubernetes",
        namespace="me",
        volumes="claim=records,path=/data",
        **settings,
    )
    return manifests.Submission(config, "me", "registry/zoo@sha256:1", CREDENTIALS, "ann", patch)


EVERYTHING = {
    "worker_gpus": 1,
    "priority_class": "spare",
    "master_priority_class": "steady",
    "node_selector": "pool=spare",
    "tolerations": "spot=true:NoSchedule,gpu",
    "image_pull_secrets": "mine, yours",
    "env": "A=1,B=",
    "storage_secret": "cloud",
    "queue": "team",
    "ingress_host": "jobs.example.com",
    "volumes": "claim=records,path=/data,read_only=true;host_path=/mnt,path=/out,sub_path=me",
}


def objects(**settings):
    settings = {**settings}
    volumes = settings.pop("volumes", None)
    given = submission(**settings)
    if volumes:
        given = dataclasses.replace(
            given, config=dataclasses.replace(given.config, volumes=volumes)
        )
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in manifests.objects(given)}


def worker(**settings):
    """The pod of worker-3."""
    definition = objects(**settings)["ConfigMap/elasticdl-digits-1"]
    template = json.loads(definition["data"]["worker.json"])
    return manifests.worker_pod(template, "worker-3", "10.0.0.1:7000")


def master(**settings):
    return objects(**settings)["Job/elasticdl-digits-1"]["spec"]["template"]


def container(pod):
    (found,) = pod["spec"]["containers"]
    return found


# Those that there are schemas of here; 1.20 itself takes them in tests/cluster.
@pytest.mark.parametrize("version", [versions.all_versions()[0], versions.latest_version()])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["little", "everything"])
def test_they_are_valid_from_the_oldest_version_to_the_newest(settings, version):
    for each in [*objects(**settings).values(), worker(**settings)]:
        kubernetes_validate.validate(each, version, strict=True)


def test_what_an_administrator_creates_is_valid():
    for each in manifests.administration("jobs", "elasticdl", "8", "32Gi", 20):
        kubernetes_validate.validate(each, versions.latest_version(), strict=True)


def test_the_job_comes_last_so_that_its_pod_misses_nothing():
    assert list(objects())[-1] == "Job/elasticdl-digits-1"


def test_an_existing_account_is_used_and_none_is_made():
    found = objects(service_account="elasticdl")
    assert not [name for name in found if name.startswith(("ServiceAccount", "Role"))]
    assert master(service_account="elasticdl")["spec"]["serviceAccountName"] == "elasticdl"


def test_the_role_is_for_this_job_s_objects_wherever_names_can_say_so():
    (role,) = (each for name, each in objects().items() if name.startswith("Role/"))
    for rule in role["rules"]:
        named = rule.get("resourceNames") == ["elasticdl-digits-1"]
        assert named or rule["resources"] in (["pods"], ["pods/log"], ["events"])


def test_workers_have_no_right_to_ask_the_cluster_for_anything():
    assert worker()["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("pod", [master, worker])
def test_pods_are_fit_for_the_restricted_security_standard_and_for_quotas(pod):
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    secured = container(pod())["securityContext"]
    assert secured["allowPrivilegeEscalation"] is False
    assert secured["readOnlyRootFilesystem"] is True
    assert secured["capabilities"] == {"drop": ["ALL"]}
    resources = container(pod())["resources"]
    for kind in ("requests", "limits"):
        assert resources[kind].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("pod", [master, worker])
def test_no_secret_stands_in_a_pod_s_manifest(pod):
    text = json.dumps(pod())
    assert CREDENTIALS.master.token not in text
    assert CREDENTIALS.others.key.decode() not in text


def test_workers_are_not_given_the_master_s_key():
    mounted = [
        volume["secret"]["secretName"]
        for volume in worker()["spec"]["volumes"]
        if "secret" in volume
    ]
    assert mounted == ["elasticdl-digits-1-worker"]


def test_a_worker_is_told_its_master_and_its_name():
    pod = worker()
    assert pod["metadata"]["name"] == "elasticdl-digits-1-worker-3"
    assert container(pod)["command"][-4:-1] == ["elasticdl.worker", "10.0.0.1:7000", "worker-3"]


def test_a_lost_node_is_given_up_soon():
    tolerated = {
        each["key"]: each["tolerationSeconds"]
        for each in worker()["spec"]["tolerations"]
        if "tolerationSeconds" in each
    }
    assert tolerated == {
        "node.kubernetes.io/not-ready": 10,
        "node.kubernetes.io/unreachable": 10,
    }


def test_settings_arrive_where_they_belong():
    pod = worker(**EVERYTHING)
    spec = pod["spec"]
    assert spec["priorityClassName"] == "spare"
    assert master(**EVERYTHING)["spec"]["priorityClassName"] == "steady"
    assert spec["nodeSelector"] == {"pool": "spare"}
    assert spec["imagePullSecrets"] == [{"name": "mine"}, {"name": "yours"}]
    assert {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in spec[
        "tolerations"
    ]
    assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]
    assert container(pod)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(master(**EVERYTHING))
    assert {"name": "A", "value": "1"} in container(pod)["env"]
    assert container(pod)["envFrom"] == [{"secretRef": {"name": "cloud"}}]
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    mounts = {each["mountPath"]: each for each in container(pod)["volumeMounts"]}
    assert mounts["/data"]["readOnly"] is True
    assert mounts["/out"]["subPath"] == "me"


def test_a_patch_is_merged_into_the_pods_by_names():
    patch = {
        "worker": {
            "metadata": {"annotations": {"a": "b"}},
            "spec": {
                "terminationGracePeriodSeconds": None,
                "containers": [
                    {"name": "worker", "env": [{"name": "HOME", "value": "/home"}]},
                    {"name": "side", "image": "side:1"},
                ],
            },
        }
    }
    pod = worker(patch=patch)
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert "terminationGracePeriodSeconds" not in pod["spec"]
    first, second = pod["spec"]["containers"]
    assert second == {"name": "side", "image": "side:1"}
    assert {"name": "HOME", "value": "/home"} in first["env"]
    assert first["image"] == "registry/zoo@sha256:1"
    assert "patch" not in json.dumps(master(patch=patch))


def test_everything_carries_the_job_s_and_the_submitter_s_name():
    for each in objects().values():
        labels = each["metadata"]["labels"]
        assert labels["elasticdl.org/job"] == "digits-1"
        assert labels["elasticdl.org/submitter"] == "ann"
