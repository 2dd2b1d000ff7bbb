"""Jobs on a Kubernetes: starts, pauses when pods are deleted, two jobs on a node that has room for
one and a half, and workers that are preempted again and again.

Needs a kubeconfig, a repository that the nodes pull from, and one node, which sees this machine's
files and has nothing else to do.
"""

import argparse
import concurrent.futures
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.config
import numpy as np
from kubernetes import client

import elasticdl
from benchmarks import training
from elasticdl import config as configs
from elasticdl.cluster import kube, manifests
from elasticdl.data import examples, recordio

MODEL = "dense"
SHARED_MODEL = "convolutional"  # what its steps take is computed
SHARED = 0.6  # of the node, which each of two jobs wants
SHARED_WORKERS = 4
SHARED_EPOCHS = 20
SHARED_GRACE_S = 10.0
ROOM = 0.1  # of the node, for masters and what else runs on it
STEADY_S = 3.0  # of training before and after each event
ENDLESS = 1_000_000  # epochs


class Bench:
    """Jobs on one cluster, with data and output in one directory."""

    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self.given = given
        self.directory = directory
        self.zoo = directory / "zoo"
        shutil.copytree(Path(__file__).parent / "zoo", self.zoo)
        (self.zoo / "requirements.txt").touch()
        for workload in training.WORKLOADS:
            with recordio.Writer(str(directory / f"{workload.model}.recordio")) as writer:
                columns = workload.columns(np.random.default_rng(0), workload.records)
                writer.extend(examples.encode(columns))
        directory.chmod(0o777)
        self._jobs = 0

    def start(self, model: str = MODEL, **settings: object) -> "Started":
        self._jobs += 1
        output = f"/data/output-{self._jobs}"
        began = time.time()
        job = elasticdl.train(
            **{
                "cluster": "kubernetes",
                "model_zoo": str(self.zoo),
                "model_def": f"models.{model}",
                "data": f"/data/{model}.recordio",
                "output": output,
                "volumes": f"host_path={self.directory},path=/data",
                "image_repository": self.given.image_repository,
                "base_image": self.given.base_image,
                "master_requests": "cpu=20m,memory=256Mi",
                "worker_requests": "cpu=100m,memory=1Gi",
                "worker_limits": "cpu=1,memory=2Gi",
                "epochs": ENDLESS,
                "batch_size": 512,
                "log_every_steps": 1,
                **settings,
            }
        )
        return Started(job, self.directory / output.removeprefix("/data/"), began)


class Started:
    """A training whose steps' times can be read."""

    def __init__(self, job: elasticdl.Job, output: Path, began: float) -> None:
        self.job = job
        self.output = output
        self.began = began
        self.api = kube.Kube(job.config.kube_context, job.config.namespace)

    def steps(self) -> list[float]:
        """When each step was committed, in seconds since 1970."""
        path = self.output / ".elasticdl" / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()[:-1]
        return [line["time"] for line in map(json.loads, lines) if line["kind"] == "train"]

    def until_at_work(self, workers: int) -> None:
        while sum(each.phase == "member" for each in self.job.status().workers) < workers:
            time.sleep(0.2)

    def pods(self) -> list[Any]:
        """Those of the workers."""
        of = manifests.selector(self.job.config.job_name, "worker")
        return self.api.objects("Pod", of)[0]

    def until_running(self, workers: int) -> None:
        while sum(each["status"].get("phase") == "Running" for each in self.pods()) < workers:
            time.sleep(0.1)

    def image(self) -> str:
        return str(self.pods()[0]["spec"]["containers"][0]["image"])

    def notes(self) -> list[str]:
        path = self.output / ".elasticdl" / "events.jsonl"
        lines = path.read_text().splitlines()[:-1]
        return [line["text"] for line in map(json.loads, lines) if line["event"] == "note"]

    def first_step_s(self) -> float:
        while not (steps := self.steps()):
            time.sleep(0.05)
        return steps[0] - self.began

    def pause_s(self, grace_s: int | None) -> float:
        """The longest time without a step after a worker's pod was deleted."""
        victim = next(each for each in reversed(self.job.status().workers) if each.rank >= 0)
        name = f"{manifests.object_name(self.job.config.job_name)}-{victim.worker}"
        deleted = time.time()
        self.api.delete("Pod", name, grace_s=grace_s)
        time.sleep(STEADY_S)
        times = [at for at in self.steps() if at > deleted - 0.5]
        return float(max(np.diff(times)))

    def delete(self) -> None:
        self.api.delete("Job", manifests.object_name(self.job.config.job_name))


def starts_and_pauses(bench: Bench, events: int) -> None:
    first = bench.start(num_workers=2)
    print(f"submit to first step, image there      {first.first_step_s():6.2f} s", flush=True)
    for words, grace_s in (("deleted", None), ("deleted by force", 0)):
        pauses = []
        for _ in range(events):
            first.until_at_work(2)
            time.sleep(STEADY_S)
            pauses.append(first.pause_s(grace_s))
        print(
            f"pod {words + ', longest pause':34} {statistics.median(pauses):6.3f} s, "
            f"at most {max(pauses):.3f} s",
            flush=True,
        )
    first.delete()
    with (bench.zoo / "models.py").open("a") as file:
        file.write(f"\n# {time.time()}\n")
    changed = bench.start(num_workers=2)
    print(f"model file changed to first step       {changed.first_step_s():6.2f} s", flush=True)
    changed.delete()


def sharing(bench: Bench, cores: float) -> None:
    """Two jobs that want more than half of the node each: as they are, and each waiting until the
    node has room for all of it.
    """
    cpu = f"{int(1000 * cores * SHARED / SHARED_WORKERS)}m"

    def job() -> Started:
        return bench.start(
            SHARED_MODEL,
            num_workers=SHARED_WORKERS,
            worker_requests=f"cpu={cpu},memory=1Gi",
            worker_limits=f"cpu={cpu},memory=2Gi",
            epochs=SHARED_EPOCHS,
            # Of a third of a processor, Python can be busy for longer than the default.
            grace_s=SHARED_GRACE_S,
        )

    began = time.time()
    for _ in range(2):
        job().job.wait()
    one_by_one = time.time() - began
    began = time.time()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for each in list(pool.map(lambda _: job(), range(2))):
            each.job.wait()
    together = time.time() - began
    print(
        f"two jobs that want {SHARED:.0%} of the node   {together:6.1f} s elastic, "
        f"{one_by_one:.1f} s one after the other: {together / one_by_one - 1:+.0%}",
        flush=True,
    )


def preemptions(bench: Bench, cores: float, count: int) -> None:
    """Pods of a higher priority take a worker's place, again and again."""
    cpu = int(1000 * cores * (1 - ROOM) / SHARED_WORKERS)
    it = bench.start(
        num_workers=SHARED_WORKERS,
        worker_requests=f"cpu={cpu}m,memory=1Gi",
        worker_limits="cpu=1,memory=2Gi",
    )
    it.until_at_work(SHARED_WORKERS)
    before = it.job.status().version
    with urgent(it, cpu) as take_a_place:
        for _ in range(count):
            take_a_place()
            it.until_running(SHARED_WORKERS)
    it.until_at_work(SHARED_WORKERS)
    said = it.notes()
    status = it.job.status()
    taken = sum("is taken away (its pod was preempted" in note for note in said)
    steps = status.version - before
    print(
        f"{count} preemptions, {taken} told as such: {steps} steps meanwhile, the job is "
        f"{status.phase}, {sum('that was failure' in note for note in said)} failures",
        flush=True,
    )
    it.delete()


@contextlib.contextmanager
def urgent(it: Started, cpu: int) -> Iterator[Callable[[], None]]:
    """Yields what has a pod of a higher priority run for a moment."""
    core, scheduling = client.CoreV1Api(), client.SchedulingV1Api()
    name = f"{manifests.object_name(it.job.config.job_name)}-urgent"
    namespace = it.job.config.namespace or it.api.namespace
    scheduling.create_priority_class({"metadata": {"name": name}, "value": 1_000_000})
    container = {
        "name": "urgent",
        "image": it.image(),
        "command": ["sleep", "3600"],
        "resources": {"requests": {"cpu": f"{cpu}m"}},
    }
    pod = {
        "metadata": {"name": name},
        "spec": {
            "priorityClassName": name,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }

    def take_a_place() -> None:
        core.create_namespaced_pod(namespace, pod)
        while core.read_namespaced_pod(name, namespace).spec.node_name is None:
            time.sleep(0.05)
        core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
        while any(each.metadata.name == name for each in core.list_namespaced_pod(namespace).items):
            time.sleep(0.05)

    try:
        yield take_a_place
    finally:
        scheduling.delete_priority_class(name)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--image_repository", required=True)
    arguments.add_argument("--base_image", default="")
    arguments.add_argument("--events", type=int, default=5)
    arguments.add_argument("--preemptions", type=int, default=100)
    given = arguments.parse_args()
    kubernetes.config.load_kube_config()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        bench = Bench(given, Path(directory))
        there = bench.start(num_workers=1)  # the image is made and on the node from here on
        there.delete()
        (node,) = client.CoreV1Api().list_node().items
        cores = configs.quantity(node.status.allocatable["cpu"])
        starts_and_pauses(bench, given.events)
        sharing(bench, cores)
        preemptions(bench, cores, given.preemptions)


if __name__ == "__main__":
    main()
