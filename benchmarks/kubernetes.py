"""Pauses and starts of a job on a Kubernetes: pods deleted under a training, submit to first step
with the image there, and a changed model file to first step.

Needs a kubeconfig, a repository that the nodes pull from, and nodes that see this machine's files.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import elasticdl
from benchmarks import training
from elasticdl.cluster import kube, manifests
from elasticdl.data import examples, recordio

MODEL = "dense"
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
        (workload,) = (each for each in training.WORKLOADS if each.model == MODEL)
        with recordio.Writer(str(directory / "data.recordio")) as writer:
            columns = workload.columns(np.random.default_rng(0), workload.records)
            writer.extend(examples.encode(columns))
        directory.chmod(0o777)
        self._jobs = 0

    def start(self, **settings: object) -> "Started":
        self._jobs += 1
        output = f"/data/output-{self._jobs}"
        began = time.time()
        job = elasticdl.train(
            cluster="kubernetes",
            model_zoo=str(self.zoo),
            model_def=f"models.{MODEL}",
            data="/data/data.recordio",
            output=output,
            volumes=f"host_path={self.directory},path=/data",
            image_repository=self.given.image_repository,
            base_image=self.given.base_image,
            worker_requests="cpu=100m,memory=1Gi",
            worker_limits="cpu=1,memory=2Gi",
            epochs=ENDLESS,
            batch_size=512,
            log_every_steps=1,
            **settings,
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--image_repository", required=True)
    arguments.add_argument("--base_image", default="")
    arguments.add_argument("--events", type=int, default=5)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        bench = Bench(given, Path(directory))
        bench.start(num_workers=1).delete()  # the image is made and on the node from here on
        first = bench.start(num_workers=2)
        print(f"submit to first step, image there      {first.first_step_s():6.2f} s", flush=True)
        for words, grace_s in (("deleted", None), ("deleted by force", 0)):
            pauses = []
            for _ in range(given.events):
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


if __name__ == "__main__":
    main()
