"""What a pod's object says of its worker, in the words that a user reads."""

import pytest

from elasticdl.cluster import podset
from elasticdl.cluster.podset import Ending


def pod(phase="Running", *, deleted=False, conditions=(), container=None, **status):
    metadata = {"name": "elasticdl-j-worker-1", "labels": {"elasticdl.org/worker": "worker-1"}}
    if deleted:
        metadata["deletionTimestamp"] = "2020-01-01T00:00:00Z"
    statuses = [{"name": "worker", "image": "registry/zoo:1", "state": container}]
    limits = {"limits": {"memory": "2Gi"}}
    return {
        "metadata": metadata,
        "spec": {"containers": [{"name": "worker", "resources": limits}]},
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": statuses if container else [],
            **status,
        },
    }


def terminated(code, reason="Error", message=""):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "message": "0/1 nodes are available: 1 Insufficient cpu.",
}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            pod("Pending", conditions=[UNSCHEDULABLE]),
            "no node has room for it (0/1 nodes are available: 1 Insufficient cpu)",
        ),
        (
            pod("Pending", container=waiting("ErrImagePull", "not found.")),
            "image registry/zoo:1 cannot be pulled (not found)",
        ),
        (
            pod("Pending", container=waiting("ImagePullBackOff")),
            "image registry/zoo:1 cannot be pulled (ImagePullBackOff)",
        ),
        (
            pod("Pending", container=waiting("CreateContainerConfigError", "no secret")),
            "its container cannot start (CreateContainerConfigError: no secret)",
        ),
        (pod("Pending", container=waiting("ContainerCreating")), ""),
        (pod("Pending"), ""),
    ],
)
def test_why_it_is_pending(given, why):
    assert podset.state(given) == podset.State("worker-1", pending=why)


def test_it_runs():
    assert podset.state(pod(container={"running": {}})).runs


@pytest.mark.parametrize(
    ("given", "how"),
    [
        (
            pod("Failed", container=terminated(137, "OOMKilled")),
            Ending(
                "it needed more memory than its limit of 2Gi: raise --worker_requests or "
                "--worker_limits (memory=…)",
                crashed=True,
                kind="user",
            ),
        ),
        (
            pod("Failed", reason="Evicted", message="The node was low on memory."),
            Ending("its pod was evicted: The node was low on memory"),
        ),
        (pod("Failed", reason="Preempting"), Ending("its pod was preempted")),
        (pod("Failed", reason="NodeLost"), Ending("its pod failed: NodeLost")),
        (
            pod("Failed", container=terminated(1, message="frames")),
            Ending("exit status 1", crashed=True, words="frames"),
        ),
        (pod("Failed", container=terminated(137)), Ending("killed by SIGKILL")),
        (pod("Failed", container=terminated(139)), Ending("killed by SIGSEGV", crashed=True)),
        (pod("Succeeded", container=terminated(0)), Ending("exit status 0")),
        (pod("Running", deleted=True, container=terminated(0)), Ending("its pod was deleted")),
        (pod("Failed", deleted=True, container=terminated(137)), Ending("its pod was deleted")),
    ],
)
def test_how_it_ended(given, how):
    assert podset.state(given).ending == how


@pytest.mark.parametrize(
    ("given", "events", "why"),
    [
        (
            pod(deleted=True),
            [{"reason": "Preempted", "message": "Preempted by me/urgent on node node1."}],
            "its pod was preempted by me/urgent on node node1",
        ),
        (
            pod(deleted=True),
            [{"reason": "TaintManagerEviction", "message": "Marking for deletion Pod me/w"}],
            "its node is lost",
        ),
        (
            pod(deleted=True),
            [{"reason": "TaintManagerEviction", "message": "Cancelling deletion of Pod me/w"}],
            "",
        ),
        (
            pod(
                deleted=True,
                conditions=[
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "default-scheduler: preempting to accommodate a higher one.",
                    }
                ],
            ),
            [],
            "its pod was preempted by one of higher priority (default-scheduler: preempting to "
            "accommodate a higher one)",
        ),
        (pod(deleted=True), [{"reason": "Killing", "message": "Stopping container"}], ""),
    ],
)
def test_why_it_was_taken_away(given, events, why):
    assert podset.cause(given, events) == why
