"""Jobs in a Kubernetes cluster: they do without the process that has submitted them."""

import contextlib
import dataclasses
import difflib
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

from elasticdl import config as configs
from elasticdl.api import running
from elasticdl.cluster import certificates, gitzoo, image, kube, manifests, remote
from elasticdl.errors import UserError
from elasticdl.model import artifact
from elasticdl.wire import elasticdl_pb2 as pb
from elasticdl.wire import rpc

_PATHS = ("data", "eval_data", "output", "trained_model", "from_checkpoint")
_NO_IMAGE = "IMAGE"


def start(
    config: configs.JobConfig, progress: Callable[[str], None] = lambda line: None
) -> running.Job:
    """Builds the image and submits the job.

    Args:
        progress: is told what is being built, a line at a time.

    Raises:
        UserError: something is not as it must be; nothing is left behind.
    """
    config, api = _placed(config)
    _check(config)
    with _answering(api):
        _check_name(api, config)
        prebuilt = config.image
        config = dataclasses.replace(config, image=_image(config, api, progress))
        credentials = certificates.made(config.job_name)
        submission = _submission(config, config.image, credentials, prebuilt)
        remote.submit(api, submission)
    return running.Job(config, _Pod(api, config.job_name, credentials.others))


def _check_name(api: kube.Kube, config: configs.JobConfig) -> None:
    """Raises UserError: the name is taken; before minutes are spent on an image."""
    if remote.find(api, config.job_name) is not None:
        raise remote.taken(api, config.job_name)


def _image(config: configs.JobConfig, api: kube.Kube, progress: Callable[[str], None]) -> str:
    """The image that the job runs; it is built where none is given that serves."""
    if config.image:
        return config.image
    options = image.Options(
        image.required_repository(config.image_repository),
        config.base_image,
        config.platform or _platform(api),
        progress,
        config.worker_gpus > 0,
    )
    if config.kind == "train":
        zoo = Path(gitzoo.local(config.model_zoo, os.environ)) if config.model_zoo else None
        return image.build(zoo, options).reference
    trained = _here(config, config.trained_model)
    if trained is None:
        # The zoo is beside the model, where the workers find it.
        progress(
            f"{config.trained_model} is not seen from here: the image gets what elasticdl needs, "
            "and nothing that the model's zoo requires besides"
        )
        return image.build(None, options).reference
    model = artifact.read(str(trained))
    if model.docker_commit_id:
        return image.derived(model.docker_commit_id, options)
    return image.build(
        trained / model.zoo_directory if model.zoo_directory else None, options
    ).reference


def zoo_image(
    zoo: str, config: configs.JobConfig, progress: Callable[[str], None], *, push: bool
) -> str:
    """The name of a zoo's image, or, where it is pushed, its reference.

    Args:
        zoo: directory or URL; empty: the zoo that comes with elasticdl.

    Raises:
        UserError
    """
    directory = Path(gitzoo.local(zoo, os.environ)) if zoo else image.BUILTIN
    options = image.Options(
        image.required_repository(config.image_repository),
        config.base_image,
        config.platform,
        progress,
        config.worker_gpus > 0,
    )
    built = image.build(directory, options, push=push)
    return built.reference if push else built.tag


def _platform(api: kube.Kube) -> str:
    """That of the nodes, where they all have one; empty where that cannot be seen."""
    try:
        found = api.platforms()
    except kube.Refused:
        return ""
    return found.pop() if len(found) == 1 else ""


def _here(config: configs.JobConfig, path: str) -> Path | None:
    """Where this machine sees what is at `path` in the containers; None: nowhere."""
    for volume in configs.parse_volumes(config.volumes):
        rest = posixpath.relpath(path, volume.path)
        if volume.host_path and not rest.startswith(".."):
            found = Path(volume.host_path, volume.sub_path, rest)
            if (found / artifact.TRAINED_MODEL).is_file():
                return found
    return None


def manifests_of(config: configs.JobConfig) -> str:
    """The objects of the job as YAML, with IMAGE where an image is still to be built."""
    config, _ = _placed(config)
    _check(dataclasses.replace(config, image=config.image or _NO_IMAGE))
    credentials = certificates.made(config.job_name)
    submission = _submission(config, config.image or _NO_IMAGE, credentials, config.image)
    return remote.as_yaml(manifests.objects(submission))


def administration(namespace: str, account: str, cpu: str, memory: str, pods: int) -> str:
    """What an administrator creates once, as YAML.

    Args:
        account: of masters whose users may not create roles.
        cpu, memory, pods: that all jobs may use together.

    Raises:
        UserError: a quantity is none.
    """
    configs.parse_resources(f"cpu={cpu},memory={memory}", "quota")
    return remote.as_yaml(manifests.administration(namespace, account, cpu, memory, pods))


def jobs(where: configs.Where) -> list[running.Listed]:
    """All jobs in the namespace.

    Raises:
        UserError
    """
    api = _api(where)
    with _answering(api):
        found = remote.jobs(api)
        return [_listed(api, each) for each in sorted(found, key=lambda each: each.job_name)]


def _listed(api: kube.Kube, found: remote.Found) -> running.Listed:
    pods, _ = api.objects("Pod", manifests.selector(found.job_name, "worker"))
    workers = sum(pod.get("status", {}).get("phase") == "Running" for pod in pods)
    status = None if found.last is None else running.status_of(found.last)
    return running.Listed(found.job_name, found.kind, found.output, found.phase, workers, status)


def attach(job_name: str, where: configs.Where) -> running.Job:
    """The job of this name in the namespace.

    Raises:
        UserError: there is none.
    """
    api = _api(where)
    with _answering(api):
        if remote.find(api, job_name) is None:
            raise _unknown(api, job_name)
        # Where it runs is said by who asks: in the pods, another context is in force.
        config = dataclasses.replace(
            remote.config_of(api, job_name), kube_context=api.context, namespace=api.namespace
        )
        return running.Job(config, _Pod(api, job_name, remote.security(api, job_name)))


def delete(job_name: str, where: configs.Where) -> None:
    """Deletes the job with all that belongs to it; what it has written stays.

    Raises:
        UserError: there is none.
    """
    api = _api(where)
    with _answering(api):
        if remote.find(api, job_name) is None:
            raise _unknown(api, job_name)
        remote.delete(api, job_name)


def logs(
    job_name: str,
    where: configs.Where,
    worker: str,
    *,
    follow: bool,
    say: Callable[[str, str], None],
) -> None:
    """Passes on what the job's pods have printed; see `remote.logs`.

    Raises:
        UserError
    """
    api = _api(where)
    with _answering(api):
        if remote.find(api, job_name) is None:
            raise _unknown(api, job_name)
        remote.logs(api, job_name, worker, follow=follow, say=say)


def forward(job_name: str, where: configs.Where) -> remote.Forward:
    """The way to the job's page, open until it is closed.

    Raises:
        UserError: there is no such job.
    """
    api = _api(where)
    with _answering(api):
        if remote.find(api, job_name) is None:
            raise _unknown(api, job_name)
    return remote.Forward(api, job_name, manifests.STATUS_PORT)


def _unknown(api: kube.Kube, job_name: str) -> UserError:
    names = [each.job_name for each in remote.jobs(api)]
    near = difflib.get_close_matches(job_name, names, n=1)
    return UserError(
        f"job_name: expected the name of a job in namespace {api.namespace}; got {job_name!r}. "
        + (f"Did you mean {near[0]}?" if near else "See `elasticdl job list`.")
    )


class _Pod:
    """The master in its pod, through a forwarded port."""

    own = False

    def __init__(self, api: kube.Kube, job_name: str, security: rpc.Security) -> None:
        self._api = api
        self._job_name = job_name
        self._control = remote.Forward(api, job_name, manifests.CONTROL_PORT)
        self._status = remote.Forward(api, job_name, manifests.STATUS_PORT)
        self.client = rpc.Client(self._control.address, security)
        self.url = f"http://{self._status.address}/"

    def without(self) -> pb.JobStatus | None:
        try:
            found = remote.find(self._api, self._job_name)
        except kube.Away:
            return None
        except kube.Refused as refused:
            raise _refusal(self._api, refused) from refused
        if found is None:
            raise UserError(f"job_name: {self._job_name} was deleted.")
        if found.last is not None:
            return found.last
        if found.phase == "failed":
            return pb.JobStatus(
                job_name=self._job_name,
                kind=found.kind,
                output=found.output,
                phase="failed",
                reason=found.reason,
                failure_kind="user",
                failure_message=f"kubernetes: {found.reason}",
            )
        return pb.JobStatus(
            job_name=self._job_name,
            kind=found.kind,
            output=found.output,
            phase="starting",
            reason=found.reason or "The master is pending.",
        )

    def close(self) -> None:
        self._control.close()
        self._status.close()


# ---- what can be known beforehand ---------------------------------------------------------------


def _placed(config: configs.JobConfig) -> tuple[configs.JobConfig, kube.Kube]:
    """The job with the names of its context and namespace, and the way there."""
    api = _api(configs.Where("kubernetes", config.kube_context, config.namespace))
    named = dataclasses.replace(config, kube_context=api.context, namespace=api.namespace)
    return named, api


def _api(where: configs.Where) -> kube.Kube:
    place = kube.place(os.environ, where.kube_context, where.namespace)
    return kube.Kube(place.context, place.namespace)


def _check(config: configs.JobConfig) -> None:
    """Raises UserError: something would be found out only after the image was built."""
    volumes = configs.parse_volumes(config.volumes)
    given = {name: getattr(config, name) for name in _PATHS if getattr(config, name)}
    for name, place in given.items():
        path = posixpath.normpath(place)
        if "://" not in place and not any(
            path == each.path or path.startswith(f"{each.path}/") for each in volumes
        ):
            mapped = ", ".join(each.path for each in volumes)
            raise UserError(
                f"{name}: expected a path that a volume maps"
                + (f" (those below {mapped})" if mapped else "")
                + f'; got {place}. Map it, with --volumes="claim=NAME,path='
                + f'{posixpath.dirname(path) if path.startswith("/") else "/data"}", or run on '
                "this machine, with --cluster=local."
            )
    if not config.image:
        image.required_repository(config.image_repository)
    for name, place in given.items():
        scheme, _, rest = place.partition("://")
        if rest:
            raise UserError(
                f"{name}: expected a path on a volume; got {place}. {scheme}:// is not supported "
                'yet: mount the data, with --volumes="claim=NAME,path=/data".'
            )


def _submission(
    config: configs.JobConfig,
    image_name: str,
    credentials: certificates.Credentials,
    prebuilt: str,
) -> manifests.Submission:
    patch = remote.patch(config.pod_template)
    # A prebuilt image has one, too.
    has_zoo = bool(config.model_zoo) or image_name == prebuilt
    inside = dataclasses.replace(
        config,
        image=image_name,
        pod_template="",
        model_zoo=manifests.MODEL_ZOO if has_zoo and config.kind == "train" else "",
    )
    return manifests.Submission(
        inside, config.namespace, image_name, credentials, remote.submitter(), patch
    )


@contextlib.contextmanager
def _answering(api: kube.Kube) -> Iterator[None]:
    """Turns what the API server says, or that it does not, into errors for the user."""
    try:
        yield
    except kube.Away as error:
        raise UserError(
            f"kubernetes: expected an answer of context {api.context}; got none: {error}. Is the "
            "cluster up? --cluster=local runs on this machine."
        ) from error
    except kube.Refused as refused:
        raise _refusal(api, refused) from refused


def _refusal(api: kube.Kube, refused: kube.Refused) -> UserError:
    if refused.status not in (401, 403):
        return UserError(f"kubernetes: {refused.message}.")
    return UserError(
        f"kubernetes: expected the right to do that in namespace {api.namespace}; got: "
        f"{refused.message}. An administrator grants it; `elasticdl admin manifests` prints what "
        "is needed."
    )
