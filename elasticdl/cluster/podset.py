"""The cluster of Kubernetes: the workers of one job as pods."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticdl.cluster import kube, local, manifests
from elasticdl.errors import ElasticDLError

Manifest = dict[str, Any]

_ASK_S = 5.0  # what was refused is tried again, and what was overlooked is seen
_AWAY_S = 0.5  # from one attempt to the next while the API server is away
_LONGEST_AWAY_S = 5.0
_WATCH_S = 300.0
_CAUSE_LOOKS = 4
_CAUSE_S = 0.3
_LOG_LINES = 2000
_KILLED, _ENDED = 137, 143  # exit statuses of who was told to end from outside


# ---- what a pod's object says -----------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How a worker's pod ended: in words; whether by its own fault, and whose (`user`, `bug`).

    `words` are the last ones that its container printed, as far as they are known.
    """

    text: str
    crashed: bool = False
    kind: str = "bug"
    words: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class State:
    """What a pod's object says of its worker.

    Args:
        pending: why it cannot start, in words; empty: nothing is in its way.
        runs: whether its container has started.
        ending: None: it has not ended.
    """

    worker: str
    pending: str = ""
    runs: bool = False
    ending: Ending | None = None


def state(pod: Manifest) -> State:
    """The state of the worker whose pod this is."""
    worker = pod["metadata"]["labels"][manifests.WORKER_LABEL]
    status = pod.get("status", {})
    phase = status.get("phase", "Pending")
    containers = status.get("containerStatuses", ())
    # A pod that was deleted may keep its phase until the last trace of it is removed.
    over = containers and all("terminated" in each.get("state", {}) for each in containers)
    if over or phase in ("Succeeded", "Failed"):
        return State(worker, ending=ending(pod))
    if phase == "Pending":
        return State(worker, pending=pending(pod))
    return State(worker, runs=True)


def pending(pod: Manifest) -> str:
    """Why a pod cannot start, in words; empty: nothing is in its way."""
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message", "").rstrip(".")
            return f"no node has room for it ({message})" if message else ""
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting")
        if waiting is None:
            continue
        reason, message = waiting.get("reason", ""), waiting.get("message", "").rstrip(".")
        if "Image" in reason:
            return f"image {container['image']} cannot be pulled ({message or reason})"
        if reason not in ("ContainerCreating", "PodInitializing", ""):
            return f"its container cannot start ({reason}: {message})"
    return ""


def ending(pod: Manifest) -> Ending:
    """How a pod ended that has."""
    status = pod.get("status", {})
    cause = status.get("reason", "")
    message = status.get("message", "").rstrip(".")
    terminated: Manifest = next(
        (
            container["state"]["terminated"]
            for container in status.get("containerStatuses", ())
            if "terminated" in container.get("state", {})
        ),
        {},
    )
    code = terminated.get("exitCode")
    words = terminated.get("message", "")
    if cause == "Evicted":
        return Ending(f"its pod was evicted: {message}")
    if cause in ("Preempting", "Preempted"):
        return Ending(f"its pod was preempted: {message}" if message else "its pod was preempted")
    if terminated.get("reason") == "OOMKilled":
        limit = _memory_limit(pod)
        return Ending(
            f"it needed more memory than its limit{f' of {limit}' if limit else ''}: raise "
            "--worker_requests or --worker_limits (memory=…)",
            crashed=True,
            kind="user",
        )
    if cause and code is None:
        return Ending(f"its pod failed: {cause}{f', {message}' if message else ''}")
    if code is None:
        return Ending("its pod ended")
    if "deletionTimestamp" in pod["metadata"] and code in (0, _KILLED, _ENDED):
        return Ending("its pod was deleted", words=words)
    if code > 128:
        how = local.Ending(local.ending(128 - code), 128 - code)
        return Ending(how.text, how.crashed, words=words)
    return Ending(f"exit status {code}", crashed=code != 0, words=words)


def _memory_limit(pod: Manifest) -> str:
    for container in pod.get("spec", {}).get("containers", ()):
        if container["name"] in ("master", "worker"):
            return str(container.get("resources", {}).get("limits", {}).get("memory", ""))
    return ""


def cause(pod: Manifest, events: Sequence[Manifest]) -> str:
    """Why a pod was taken away, in words; empty: that is not said anywhere."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            message = condition.get("message", "").rstrip(".")
            said = {
                "PreemptionByScheduler": "its pod was preempted by one of higher priority",
                "DeletionByTaintManager": "its node is lost",
                "EvictionByEvictionAPI": "its pod was evicted",
                "TerminationByKubelet": "its node ended its pod",
                "DeletionByPodGC": "its node is lost",
            }.get(condition.get("reason", ""))
            if said:
                return f"{said} ({message})" if message else said
    for event in events:
        message = str(event.get("message", "")).rstrip(".")
        match event.get("reason"):
            case "Preempted":
                return f"its pod was {message[:1].lower()}{message[1:]}"
            case "Evicted":
                return f"its pod was evicted: {message}"
            case "TaintManagerEviction" if "Cancelling" not in message:
                return "its node is lost"
    return ""


# ---- pods ---------------------------------------------------------------------------------------


class Pods:
    """Worker pods of one job. What should be is compared with what is, again and again; events of
    the API server only say when to look.

    Args:
        template: of a worker's pod, see `manifests.worker_pod`.
        master: the address at which workers find masters, host:port.
        owner: with which pods are deleted.
        logs: directory of what pods have printed that ended by their own fault, NAME.log.
        on_exit: called in the event loop with a worker's name and how it ended, once each.
        on_pending: called in the event loop with a worker's name and why it cannot start; empty:
            it can again.
        on_taken: called in the event loop with a worker's name and why the cluster takes it away,
            as soon as that is known.
        stop_s: how long `stop` lets workers end by themselves.
    """

    def __init__(
        self,
        api: kube.Kube,
        job_name: str,
        template: Manifest,
        master: str,
        owner: Manifest,
        logs: Path,
        on_exit: Callable[[str, Ending], None],
        on_pending: Callable[[str, str], None],
        on_taken: Callable[[str, str], None],
        stop_s: float = 20.0,
    ) -> None:
        self._api = api
        self._job_name = job_name
        self._selector = manifests.selector(job_name, "worker")
        self._template = template
        self._master = master
        self._owner = owner
        self._logs = logs
        self._on_exit = on_exit
        self._on_pending = on_pending
        self._on_taken = on_taken
        self._stop_s = stop_s
        self._to_create: dict[str, float] = {}  # when
        self._to_delete: dict[str, int | None] = {}  # how long they may take
        self._there: dict[str, Manifest | None] = {}  # their objects, as last seen
        self._looks = 0
        self._created_at: dict[str, int] = {}
        self._pending: dict[str, str] = {}
        self._told: set[str] = set()  # to end, by this job or by others
        self._problem = ""
        self._nudge = asyncio.Event()
        self._empty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def problem(self) -> str:
        """What is wrong with the API server, in words; empty: nothing."""
        return self._problem

    async def found(self) -> tuple[str, ...]:
        """Takes over the workers that are there, and begins to look after them all."""
        pods, version = await self._until_answered(lambda: self._api.objects("Pod", self._selector))
        for pod in pods:
            now = state(pod)
            # That there was one of that name is to be known for good.
            self.log(now.worker).touch()
            if now.ending is None:
                self._there[now.worker] = pod
        self._note_whether_empty()
        names = tuple(self._there)
        events = asyncio.get_running_loop()
        self._tasks = [
            events.create_task(self._keep_changing()),
            events.create_task(self._keep_looking(version)),
        ]
        # After this call: whoever asked has not taken in yet what was found.
        for pod in pods:
            if state(pod).ending is None:
                events.call_soon(self._saw, pod)
        return names

    def start(self, worker: str, delay_s: float = 0.0) -> None:
        """Has the worker's pod created; what prevents that is told as its being pending."""
        if self._stopped:
            return
        self.log(worker).touch()
        self._to_create[worker] = time.monotonic() + delay_s
        self._empty.clear()
        self._nudge.set()

    def kill(self, worker: str) -> None:
        """Ends the worker at once, whatever it does, even if its node does not answer."""
        self._end(worker, 0)

    def terminate(self, worker: str) -> None:
        """Asks the worker to leave."""
        self._end(worker, None)

    async def stop(self) -> None:
        """Returns when no worker runs any more: SIGTERM first, SIGKILL after `stop_s` seconds; or
        when the API server does not answer for that long.
        """
        self._stopped = True
        for grace_s in (None, 0):
            for worker in (*self._to_create, *self._there):
                self._end(worker, grace_s)
            await self.exited(self._stop_s)
        self.release()

    def release(self) -> None:
        """Leaves the workers to a later master."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def exited(self, timeout_s: float) -> None:
        """Returns when all workers have ended by themselves, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def log(self, worker: str) -> Path:
        return self._logs / f"{worker}.log"

    def _end(self, worker: str, grace_s: int | None) -> None:
        if worker in self._to_create:
            del self._to_create[worker]
            # Later: whoever ends a worker is in the middle of something.
            events = asyncio.get_running_loop()
            events.call_soon(self._gone, worker, Ending("not started yet"))
        elif worker in self._there:
            self._told.add(worker)
            self._to_delete[worker] = grace_s
            self._nudge.set()

    # ---- towards what should be --------------------------------------------------------------

    async def _keep_changing(self) -> None:
        while True:
            soon = min(self._to_create.values(), default=math.inf) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(soon, 0.0), _ASK_S)):
                    await self._nudge.wait()
            self._nudge.clear()
            for worker, grace_s in list(self._to_delete.items()):
                await self._delete(worker, grace_s)
            now = time.monotonic()
            for worker, when in list(self._to_create.items()):
                if when <= now and worker in self._to_create:
                    await self._create(worker)

    async def _delete(self, worker: str, grace_s: int | None) -> None:
        try:
            await asyncio.to_thread(self._api.delete, "Pod", self._pod(worker), grace_s=grace_s)
        except kube.Away as error:
            await self._wait_for_server(error)
            return
        except kube.Refused as refused:
            self._problem = f"pods cannot be deleted: {refused.message}"
            await asyncio.sleep(_AWAY_S)
            return
        self._problem = ""
        if self._to_delete.get(worker) == grace_s:
            del self._to_delete[worker]

    async def _create(self, worker: str) -> None:
        manifest = manifests.worker_pod(self._template, worker, self._master)
        manifest["metadata"]["ownerReferences"] = [self._owner]
        try:
            await asyncio.to_thread(self._api.create, manifest)
        except kube.Away as error:
            self._pends(worker, f"the API server does not answer ({error})")
            await self._wait_for_server(error)
            return
        except kube.Refused as refused:
            if not refused.conflict:
                # A quota may be free again, a right may be given.
                what = "a quota" if "exceeded quota" in refused.message else "the cluster"
                self._pends(worker, f"{what} does not allow its pod ({refused.message})")
                self._to_create[worker] = time.monotonic() + _ASK_S
                return
        self._problem = ""
        if self._to_create.pop(worker, None) is None:
            # It was to be ended while it was being created.
            self._to_delete[worker] = 0
        self._there.setdefault(worker, None)
        self._created_at[worker] = self._looks
        if self._pending.get(worker, "").startswith(("the API server", "a quota", "the cluster")):
            self._pends(worker, "")

    def _pends(self, worker: str, reason: str) -> None:
        if self._pending.get(worker, "") != reason:
            self._pending[worker] = reason
            self._on_pending(worker, reason)

    # ---- what is -----------------------------------------------------------------------------

    async def _keep_looking(self, version: str) -> None:
        while True:
            try:
                await asyncio.to_thread(self._watch, version, asyncio.get_running_loop())
            except (kube.Away, kube.Refused) as error:
                await self._wait_for_server(error)
            look = self._looks = self._looks + 1
            pods, version = await self._until_answered(
                lambda: self._api.objects("Pod", self._selector)
            )
            seen = {pod["metadata"]["labels"][manifests.WORKER_LABEL] for pod in pods}
            for pod in pods:
                self._saw(pod)
            for worker, last in list(self._there.items()):
                # One that was created while the list was made may be missing in it.
                if worker not in seen and self._created_at.get(worker, -1) < look:
                    await self._disappeared(worker, last or {"metadata": {}})

    def _watch(self, version: str, events: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread of its own; what it sees is taken in by the event loop."""
        for kind, pod in self._api.watch("Pod", self._selector, version, _WATCH_S):
            if kind == "DELETED":
                events.call_soon_threadsafe(self._saw_deleted, pod)
            else:
                events.call_soon_threadsafe(self._saw, pod)

    def _saw(self, pod: Manifest) -> None:
        now = state(pod)
        if now.worker not in self._there:
            return
        self._there[now.worker] = pod
        if now.ending is None:
            self._pends(now.worker, now.pending)
            if "deletionTimestamp" in pod["metadata"] and now.worker not in self._told:
                self._told.add(now.worker)
                self._later(self._taken(now.worker, pod))
        else:
            del self._there[now.worker]
            self._later(self._ended(now.worker, pod, now.ending))

    def _saw_deleted(self, pod: Manifest) -> None:
        worker = pod["metadata"]["labels"][manifests.WORKER_LABEL]
        if worker in self._there:
            self._later(self._disappeared(worker, pod))

    async def _ended(self, worker: str, pod: Manifest, how: Ending) -> None:
        name = pod["metadata"]["name"]
        if how.crashed:
            with contextlib.suppress(kube.Away, kube.Refused, OSError):
                printed = await asyncio.to_thread(self._printed, name)
                self.log(worker).write_bytes(printed)
        elif "deletionTimestamp" in pod["metadata"]:
            why = await self._cause(pod)
            how = Ending(why or how.text)
        self._gone(worker, how)

    async def _disappeared(self, worker: str, pod: Manifest) -> None:
        if self._there.pop(worker, self) is self:
            return
        self._gone(worker, Ending(await self._cause(pod) or "its pod was deleted"))

    async def _taken(self, worker: str, pod: Manifest) -> None:
        # Its cause may be noted a moment later than the pod is marked.
        for _ in range(_CAUSE_LOOKS):
            why = await self._cause(pod)
            if why:
                break
            await asyncio.sleep(_CAUSE_S)
        self._on_taken(worker, why or "its pod is deleted")

    async def _cause(self, pod: Manifest) -> str:
        name = pod["metadata"].get("name")
        events: list[Manifest] = []
        if name:
            with contextlib.suppress(kube.Away, kube.Refused):
                about = f"involvedObject.name={name}"
                events, _ = await asyncio.to_thread(self._api.objects, "Event", "", about)
        return cause(pod, events)

    def _printed(self, pod: str) -> bytes:
        return b"".join(self._api.log(pod, tail=_LOG_LINES))

    def _gone(self, worker: str, ending: Ending) -> None:
        self._there.pop(worker, None)
        self._to_delete.pop(worker, None)
        self._pending.pop(worker, None)
        self._note_whether_empty()
        self._on_exit(worker, ending)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _note_whether_empty(self) -> None:
        if self._there or self._to_create:
            self._empty.clear()
        else:
            self._empty.set()

    def _pod(self, worker: str) -> str:
        return f"{self._template['metadata']['name']}-{worker}"

    # ---- an API server that is away ------------------------------------------------------------

    async def _until_answered(self, ask: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = await asyncio.to_thread(ask)
            except (kube.Away, kube.Refused) as error:
                await self._wait_for_server(error)
            else:
                self._problem, self._away_s = "", _AWAY_S
                return answer

    _away_s = _AWAY_S

    async def _wait_for_server(self, error: ElasticDLError) -> None:
        self._problem = f"the API server does not answer: {error}"
        if isinstance(error, kube.Refused):
            if error.status == 410:
                return  # it does not remember so long: the next list is up to date
            self._problem = f"pods cannot be listed: {error}"
        await asyncio.sleep(self._away_s)
        self._away_s = min(2 * self._away_s, _LONGEST_AWAY_S)


def owner(job: Mapping[str, Any]) -> Manifest:
    """The reference by which what a Job owns is deleted with it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
        "blockOwnerDeletion": False,
    }
