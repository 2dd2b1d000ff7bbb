"""In a cluster, too, training goes on whatever is taken away; and it is said why."""

import hashlib

import numpy as np
import pytest

from tests.cluster.conftest import until
from tests.jobs import support
from tests.jobs.support import CONV, EPOCHS

RECORDS = 320
COUNT = (
    "--batch_size=16",
    f"--epochs={EPOCHS}",
    "--slice_records=7",
    "--reproducible",
    "--checkpoint_every=10",
)


def digest(output):
    return hashlib.sha256((output / "parameters.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(train, digits, tmp_path_factory):
    """The weights that one worker on this machine comes to when nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    return digest(train("digits.Conv", digits.train, output, *CONV))


@pytest.fixture
def conv(job, volume, plan):
    """Trains the convolutional model under the plan's faults."""

    def conv(*arguments, **options):
        data = volume.digits()
        return job("faulty.Conv", data, f"--params={plan.param}", *CONV, *arguments, **options)

    return conv


@pytest.fixture
def count(job, volume, plan):
    """Trains the model that counts, under the plan's faults."""

    def count(*arguments, **options):
        data = volume.numbered(RECORDS)
        params = f"--params=records={RECORDS}, {plan.param}"
        return job("faulty.Counting", data, params, *COUNT, *arguments, **options)

    return count


def counts(output):
    """How often each record was used, as the weights say."""
    (value,) = support.weights(output).values()
    return value[:, 0]


def test_an_undisturbed_job_comes_to_the_weights_of_this_machine(conv, undisturbed):
    assert digest(conv().succeeds()) == undisturbed


def test_a_worker_s_pod_is_deleted(conv, plan, undisturbed):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = conv()
    plan.until_fired()
    it.delete("worker-1")
    plan.go("go")
    assert digest(it.succeeds()) == undisturbed
    assert any("worker-1 leaves at step" in note for note in it.notes())


def test_a_pod_that_is_force_deleted_does_not_commit(conv, plan, undisturbed):
    """Its container goes on for a while, as on a node that is cut off."""
    plan.hold("step", "go", worker="worker-0", version=8)
    it = conv()
    plan.until_fired()
    it.delete("worker-1", grace_s=0)
    plan.go("go")
    assert digest(it.succeeds()) == undisturbed


def test_all_workers_are_deleted_and_others_go_on_from_the_checkpoint(count, plan):
    plan.hold("step", "go", worker="worker-0", version=25)
    it = count()
    plan.until_fired()
    for worker in it.running():
        it.delete(worker, grace_s=0)
    plan.go("go")
    assert np.array_equal(counts(it.succeeds()), np.full(RECORDS, EPOCHS))


def test_the_master_s_pod_is_deleted_and_the_next_one_takes_over(conv, plan, undisturbed):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = conv()
    plan.until_fired()
    workers = {name: pod["metadata"]["uid"] for name, pod in it.running().items()}
    first = it.delete_master()
    until(lambda: it.running("master").keys() - {first})
    plan.go("go")
    assert digest(it.succeeds()) == undisturbed
    assert {name: pod["metadata"]["uid"] for name, pod in it.pods().items()} == workers
    assert "A new master takes over 2 workers." in it.notes()


def test_the_job_starts_with_what_there_is_room_for(count, plan):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count("--worker_requests=cpu=1100m,memory=1Gi", "--worker_limits=cpu=1100m,memory=2Gi")
    plan.until_fired()
    assert any("worker-1 is pending: no node has room for it" in note for note in it.notes())
    plan.go("go")
    assert np.array_equal(counts(it.succeeds()), np.full(RECORDS, EPOCHS))


def test_a_worker_that_needs_more_memory_than_its_limit(count):
    last = count(
        "--worker_requests=cpu=100m,memory=100Mi", "--worker_limits=cpu=1,memory=100Mi"
    ).end()
    assert last["event"] == "error"
    assert last["exit_status"] == 2
    assert "it needed more memory than its limit of 100Mi" in last["message"]


def test_an_image_that_is_not_there_is_said_within_seconds(job, volume, registry):
    it = job("digits.Dense", volume.digits(), f"--image={registry}/nowhere:none")
    for event in it.command.events():
        if "cannot be pulled" in event.get("reason", ""):
            break
    else:
        raise AssertionError("it was not said")
    assert f"image {registry}/nowhere:none cannot be pulled" in event["reason"]


def test_what_the_containers_print_can_be_read_and_a_job_deleted(count, plan, elasticdl, api):
    plan.hold("step", "go", worker="worker-0", version=3)
    it = count()
    plan.until_fired()
    place = ("--cluster=kubernetes", f"--namespace={api.namespace}")
    listed = elasticdl("job", "list", *place).end()
    assert it.name in listed.out
    status = elasticdl("job", "status", it.name, *place).end()
    assert "2 workers at work" in status.out, status
    read = elasticdl("job", "logs", it.name, "--worker=master", *place).end()
    assert read.status == 0, read.err
    deleted = elasticdl("job", "delete", it.name, *place).end()
    assert deleted.out == f"Job {it.name} is deleted.\n"
    until(lambda: not it.pods(""))
    assert "was deleted" in it.end()["message"]


def test_the_api_server_is_away_for_a_while(conv, plan, api_server, undisturbed):
    plan.hold("step", "go", worker="worker-0", version=8)
    plan.crash("step", worker="worker-1", version=14)
    it = conv()
    plan.until_fired()
    with api_server.away():
        plan.go("go")
        # A worker is lost, and nobody can be asked for another one: the others go on.
        plan.until_fired(1)
        until(lambda: it.steps() > 20)
    assert digest(it.succeeds()) == undisturbed


def test_a_worker_is_preempted_by_a_pod_of_higher_priority(count, plan, urgent):
    plan.hold("step", "go", worker="worker-0", version=8)
    it = count("--worker_requests=cpu=600m,memory=1Gi", "--worker_limits=cpu=1,memory=2Gi")
    plan.until_fired()
    with urgent(cpu="900m"):
        until(lambda: any("is taken away" in note for note in it.notes()))
        plan.go("go")
        assert np.array_equal(counts(it.succeeds()), np.full(RECORDS, EPOCHS))
    assert any("is taken away (its pod was preempted" in note for note in it.notes()), it.notes()


def test_who_may_not_submit_is_told_so(job, volume, stranger):
    last = job("digits.Dense", volume.digits(), environ={"KUBECONFIG": stranger}).end()
    assert last["event"] == "error"
    assert last["exit_status"] == 2
    assert "expected the right to" in last["message"]
