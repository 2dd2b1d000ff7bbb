"""The master's process in a pod: takes a job over, and leaves word of how it ended."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from elasticdl.cluster import kube, manifests, podset
from elasticdl.config import JobConfig
from elasticdl.errors import UserError
from elasticdl.master import claim, dashboard, loop, service
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc

_LINGER_S = 10.0  # for those who watch to see how the job ended
_WATCH_S = 1.0
_AGAIN_S = 1.0
_TAKEN_S = 60.0  # in which a master that was here before must have gone
_LEAVE_WORD_S = 60.0
_RELEASED = 143  # as by SIGTERM: for the Job, this pod has not succeeded

log = logging.getLogger(__name__)


async def main(definition: str, security: str) -> NoReturn:
    """Ends this process, with status 0 where the job has succeeded.

    Args:
        definition: directory with the job's config.json and worker.json.
        security: directory of what this master shows others.
    """
    try:
        status = await _run(definition, security)
    except Exception:  # the outermost frame: the Job starts another master
        traceback.print_exc()
        status = 1
    # Not in good order: a thread may still wait for what the API server has to say.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


async def _run(definition: str, security: str) -> int:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format='{"time": "%(asctime)s", "level": "%(levelname)s", "text": "%(message)s"}',
    )
    config = JobConfig.from_json(Path(definition, "config.json").read_text(encoding="utf-8"))
    template = json.loads(Path(definition, "worker.json").read_text(encoding="utf-8"))
    # Given directories are those of the containers; the kubeconfig of who submitted is not here.
    api = kube.Kube("", config.namespace)
    name = manifests.object_name(config.job_name)
    told = asyncio.Event()
    events = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, told.set)
    owner = await _until_answered(lambda: api.get("Job", name))
    own = await _until_answered(lambda: api.get("Pod", os.uname().nodename))
    if "@sha256:" not in config.image:
        config = dataclasses.replace(config, image=_image(own) or config.image)
    try:
        master = await _taken_over(api, name, config, template, owner)
    except UserError as error:
        log.error("%s", error)
        failed = pb.JobStatus(
            job_name=config.job_name,
            kind=config.kind,
            phase="failed",
            reason=str(error),
            failure_kind="user",
            failure_message=str(error),
            output=config.output,
        )
        await _leave_word(api, name, failed)
        return 1
    answers = service.Service(master)
    server, master.address = await rpc.serve(
        answers, f"0.0.0.0:{manifests.CONTROL_PORT}", rpc.Security.read(security)
    )
    page = dashboard.server(master.status, "0.0.0.0", manifests.STATUS_PORT)
    serving = events.create_task(page.serve())

    async def release() -> None:
        await told.wait()
        master.release()

    releasing = events.create_task(release())
    await master.run()
    if master.superseded:
        # At once: calls that wait for an answer find the next master by the broken connection.
        return _RELEASED
    last = master.status()
    await _leave_word(api, name, last)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while answers.watched(_WATCH_S) and not told.is_set():
                await asyncio.sleep(0.02)
    releasing.cancel()
    page.should_exit = True
    await serving
    await server.stop(grace=1.0)
    return 0 if last.phase == "succeeded" else 1


def _image(pod: dict[str, Any]) -> str:
    """What this pod runs, as REPOSITORY@sha256:…; empty: its node does not say.

    A node names an image by any repository that it knows it from.
    """
    for container in pod.get("status", {}).get("containerStatuses", ()):
        if container["name"] == "master":
            found = str(container.get("imageID", "")).rpartition("://")[2]
            return found if "@sha256:" in found else ""
    return ""


async def _taken_over(
    api: kube.Kube, name: str, config: JobConfig, template: dict[str, Any], owner: dict[str, Any]
) -> loop.Loop:
    """The job's loop, with a higher number than any master's before.

    Raises:
        UserError
    """
    address = await _until_answered(lambda: api.get("Service", name))
    where = f"{address['spec']['clusterIP']}:{manifests.CONTROL_PORT}"
    term = await _until_answered(lambda: _claimed(api, name))

    def workers(master: loop.Loop) -> podset.Pods:
        return podset.Pods(
            api,
            config.job_name,
            template,
            where,
            podset.owner(owner),
            master.places.logs,
            master.gone,
            master.pends,
            master.taken,
        )

    give_up = asyncio.get_running_loop().time() + _TAKEN_S
    while True:
        try:
            return loop.Loop(
                config, submission=owner["metadata"]["uid"], term=term, workers=workers
            )
        except claim.Taken:
            # Perhaps by a master of this very job that is not gone yet.
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(_AGAIN_S)


def _claimed(api: kube.Kube, name: str) -> int:
    """The number of this master: one more than the last one's."""
    while True:
        lease = api.get("Lease", name)
        term = int(lease["spec"].get("leaseTransitions") or 0) + 1
        lease["spec"]["leaseTransitions"] = term
        lease["spec"]["holderIdentity"] = os.uname().nodename
        lease |= {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        try:
            api.replace(lease)
            return term
        except kube.Refused as refused:
            if not refused.conflict:
                raise


async def _leave_word(api: kube.Kube, name: str, last: pb.JobStatus) -> None:
    """Notes how the job ended where it is found when this pod is no more, and has the cluster start
    no master in place of one that has failed.
    """
    said = json.dumps(dashboard.plain(last))
    patch: dict[str, Any] = {"metadata": {"annotations": {manifests.STATUS_ANNOTATION: said}}}
    if last.phase != "succeeded":
        patch["spec"] = {"backoffLimit": 0}
    try:
        async with asyncio.timeout(_LEAVE_WORD_S):
            await _until_answered(lambda: api.patch("Job", name, patch))
    except TimeoutError:
        log.error("how the job ended could not be noted within %s s", _LEAVE_WORD_S)
    except kube.Refused as refused:
        # Deleted, most likely: then nobody will ask.
        log.warning("how the job ended could not be noted: %s", refused.message)


async def _until_answered(ask: Any) -> Any:
    while True:
        try:
            return await asyncio.to_thread(ask)
        except kube.Away as error:
            log.warning("the API server does not answer: %s", error)
            await asyncio.sleep(_AGAIN_S)
