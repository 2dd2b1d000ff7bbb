"""The commands of the document, on a cluster: image built and pushed, job submitted, model used."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import docker
import numpy as np
import pytest

from elasticdl.cluster import context, image
from elasticdl.errors import UserError
from elasticdl.model import artifact
from tests.cluster.conftest import POD
from tests.jobs import support

DIGITS = pathlib.Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def zoo(tmp_path):
    """That of `make demo`."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for name in ("digits.py", "requirements.txt"):
        shutil.copy(DIGITS / name, zoo / name)
    return zoo


@pytest.fixture
def settings(registry, base_image, namespace, volume):
    """What the tests' cluster needs to be told, as a user would tell it once and for all."""
    return {
        "ELASTICDL_CLUSTER": "kubernetes",
        "ELASTICDL_NAMESPACE": namespace,
        "ELASTICDL_IMAGE_REPOSITORY": f"{registry}/elasticdl-tests/zoo",
        "ELASTICDL_BASE_IMAGE": base_image,
        "ELASTICDL_VOLUMES": f"host_path={volume.directory},path={POD}",
        "ELASTICDL_WORKER_REQUESTS": "cpu=100m,memory=1Gi",
        "ELASTICDL_WORKER_LIMITS": "cpu=1,memory=2Gi",
        "KUBECONFIG": os.environ["KUBECONFIG"],
    }


@pytest.fixture
def written(run, volume, tmp_path):
    """The demo's records, in the volume."""
    arrays = tmp_path / "arrays"
    subprocess.run([sys.executable, DIGITS / "write_arrays.py", arrays], check=True)
    for part in ("train", "test"):
        ended = run("data", "write", f"{arrays}/{part}.npz", f"{volume.directory}/{part}")
        assert ended.status == 0, ended.err
    (volume.directory / "out").mkdir()
    (volume.directory / "out").chmod(0o777)


def test_a_model_is_trained_evaluated_and_used(run, zoo, settings, written, volume):
    trained = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits", "--num_workers=2"),
        *("--params=learning_rate=0.002", "--epochs=10", "--quiet"),
        *(f"--data={POD}/train", f"--output={POD}/out/trained"),
        environ=settings,
    )
    assert trained.status == 0, trained.err
    assert trained.out == f"{POD}/out/trained\n"
    output = volume.directory / "out" / "trained"
    model = artifact.read(str(output))
    repository = settings["ELASTICDL_IMAGE_REPOSITORY"]
    assert model.docker_commit_id.startswith(f"docker-pullable://{repository}@sha256:")

    measured = run(
        *("evaluate", f"--trained_model={POD}/out/trained", f"--data={POD}/test"),
        *(f"--output={POD}/out/evaluation", "--quiet"),
        environ=settings,
    )
    assert measured.status == 0, measured.err
    content = (volume.directory / "out" / "evaluation" / "metrics.json").read_text()
    assert json.loads(content)["accuracy"] > 0.9

    used = run(
        *("predict", f"--trained_model={POD}/out/trained", f"--data={POD}/test"),
        *(f"--output={POD}/out/predicted", "--quiet"),
        environ=settings,
    )
    assert used.status == 0, used.err
    shown = run("data", "check", str(volume.directory / "out" / "predicted"))
    assert "297 records" in shown.out + shown.err, shown


@pytest.mark.parametrize("place", [POD, "gs://bucket-name/tony"])
def test_without_a_repository_the_error_says_how_to_set_it_once(run, zoo, settings, place):
    del settings["ELASTICDL_IMAGE_REPOSITORY"]
    ended = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits"),
        *(f"--data={place}/train/*.recordio", f"--output={place}/trained"),
        environ=settings,
    )
    assert ended.status == 2
    assert "image_repository: expected the repository that images are pushed to" in ended.err
    assert "~/.config/elasticdl/config.toml" in ended.err
    assert ended.err.count("\n") == 1


def test_a_path_that_no_volume_maps_is_refused_before_anything_is_built(run, zoo, settings):
    ended = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits"),
        *("--data=/home/me/train", f"--output={POD}/out/trained"),
        environ=settings,
    )
    assert ended.status == 2
    assert ended.err.startswith("error: data: expected a path that a volume maps (those below")
    assert '--volumes="claim=NAME,path=/home/me"' in ended.err
    assert "--cluster=local" in ended.err


def test_a_dry_run_prints_what_kubectl_takes(run, zoo, settings):
    ended = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits", "--dry_run"),
        *(f"--data={POD}/train", f"--output={POD}/out/trained", "--image=registry/zoo:1"),
        environ=settings,
    )
    assert ended.status == 0, ended.err
    place = f"--namespace={settings['ELASTICDL_NAMESPACE']}"
    applied = subprocess.run(
        ["kubectl", "apply", "--dry-run=server", place, "--filename=-"],
        input=ended.out,
        text=True,
        capture_output=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    assert "job.batch/elasticdl-digits-digits-" in applied.stdout


def test_an_unchanged_zoo_builds_and_pushes_nothing_and_a_changed_model_little(
    registry, base_image, zoo
):
    said = []
    options = image.Options(f"{registry}/elasticdl-tests/zoo", base_image, "", said.append)
    first = image.build(zoo, options)
    said.clear()
    assert image.build(zoo, options) == image.Built(first.tag, first.reference, fresh=False)
    assert said == []

    (zoo / "digits.py").write_text((zoo / "digits.py").read_text() + f"\n# {os.urandom(8).hex()}\n")
    changed = image.build(zoo, options)
    assert changed.fresh
    assert changed.reference != first.reference
    assert said[0] == "adding the zoo"
    assert all(line.startswith(("adding the zoo", "pushing")) for line in said)


def test_the_zoo_is_there_by_both_names_and_nobody_is_root(registry, base_image, zoo):
    built = image.build(zoo, image.Options(f"{registry}/elasticdl-tests/zoo", base_image))
    engine = docker.from_env()
    program = "import os, elasticdl; print(os.getuid(), open('/model_zoo/custom/digits.py').read())"
    try:
        said = engine.containers.run(built.reference, ["python", "-c", program], remove=True)
    finally:
        engine.close()
    assert said.decode() == f"1000 {(zoo / 'digits.py').read_text()}\n"


def test_what_pip_was_told_of_the_client_is_in_no_layer(registry, base_image, zoo, monkeypatch):
    secret = os.urandom(8).hex()
    monkeypatch.setenv("PIP_TRUSTED_HOST", f"{secret}.example.com")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (zoo / "requirements.txt").write_text(f"six  # {os.urandom(8).hex()}\n")
    built = image.build(zoo, image.Options(f"{registry}/elasticdl-tests/zoo", base_image))
    engine = docker.from_env()
    try:
        made = engine.images.get(built.tag)
        told = json.dumps([made.attrs, made.history()])
        found = engine.containers.run(
            built.reference,
            ["sh", "-c", f"grep -rs {secret} /etc /root /tmp /run /var /model_zoo || true"],
            remove=True,
            user="root",
        )
    finally:
        engine.close()
    assert secret not in told
    assert found == b""


def test_an_image_with_this_elasticdl_is_used_as_it_stands(registry, base_image, zoo):
    options = image.Options(f"{registry}/elasticdl-tests/zoo", base_image)
    built = image.build(zoo, options)
    assert image.derived(image.pullable(built.reference), options) == built.reference


def test_an_image_with_another_elasticdl_gets_this_one(registry, base_image, zoo, monkeypatch):
    options = image.Options(f"{registry}/elasticdl-tests/zoo", base_image)
    entries = context.package_entries()
    other = [*entries, context.Entry("elasticdl/other.txt", entries[0].source)]
    monkeypatch.setattr(context, "package_entries", lambda: other)
    older = image.build(zoo, options)
    monkeypatch.undo()
    made = image.derived(image.pullable(older.reference), options)
    assert made != older.reference
    assert image.derived(image.pullable(made), options) == made


def test_without_docker_a_trained_model_s_image_is_used_as_it_stands(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    given = "docker-pullable://registry/zoo@sha256:" + "0" * 64
    options = image.Options("registry/zoo")
    assert image.derived(given, options) == image.reference(given)


def test_a_model_that_was_trained_on_this_machine_gets_an_image_of_the_zoo_in_its_output(
    run, zoo, settings, written, volume
):
    trained = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits", "--quiet"),
        *(f"--data={volume.directory}/train", f"--output={volume.directory}/here"),
    )
    assert trained.status == 0, trained.err
    assert artifact.read(str(volume.directory / "here")).docker_commit_id == ""
    used = run(
        *("predict", f"--trained_model={POD}/here", f"--data={POD}/test"),
        *(f"--output={POD}/out/predicted", "--quiet"),
        environ=settings,
    )
    assert used.status == 0, used.err
    shown = run("data", "check", str(volume.directory / "out" / "predicted"))
    assert "297 records" in shown.out + shown.err, shown


def test_images_are_of_the_nodes_platform_and_one_that_there_is_not_is_one_line(
    registry, base_image, zoo, api
):
    (platform,) = api.platforms()
    options = image.Options(f"{registry}/elasticdl-tests/zoo", base_image, platform)
    built = image.build(zoo, options)
    engine = docker.from_env()
    try:
        about = engine.images.get(built.tag).attrs
    finally:
        engine.close()
    assert f"{about['Os']}/{about['Architecture']}" == platform
    foreign = dataclasses.replace(options, platform="linux/s390x")
    with pytest.raises(UserError, match="platform: expected an image for linux/s390x") as refused:
        image.build(zoo, foreign)
    assert "\n" not in str(refused.value)


def test_no_docker_is_one_line(run, zoo, settings):
    ended = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits"),
        *(f"--data={POD}/train", f"--output={POD}/out/trained"),
        environ={**settings, "DOCKER_HOST": "tcp://127.0.0.1:1"},
    )
    assert ended.status == 2
    assert "docker: expected a running Docker engine at tcp://127.0.0.1:1" in ended.err
    assert ended.err.count("\n") == 1


def test_a_registry_that_cannot_be_pushed_to_is_one_line(run, zoo, settings):
    ended = run(
        *("train", f"--model_zoo={zoo}", "--model_def=digits.Digits"),
        *(f"--data={POD}/train", f"--output={POD}/out/trained"),
        environ={**settings, "ELASTICDL_IMAGE_REPOSITORY": "127.0.0.1:1/me/elasticdl"},
    )
    assert ended.status == 2
    assert "image_repository: " in ended.err
    assert "Traceback" not in ended.err


def test_a_zoo_from_a_git_repository(run, zoo, settings, written, volume, tmp_path):
    git = ["git", "-C", str(zoo), "-c", "user.name=me", "-c", "user.email=me@example.com"]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "models"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    ended = run(
        *("train", f"--model_zoo=file://{zoo}@v1", "--model_def=digits.Digits", "--quiet"),
        *(f"--data={POD}/train", f"--output={POD}/out/trained"),
        environ=settings,
    )
    assert ended.status == 0, ended.err
    assert (volume.directory / "out" / "trained" / artifact.TRAINED_MODEL).exists()
    assert support.history(volume.directory / "out" / "trained", "train")


def test_the_zoo_that_comes_along_is_prebuilt_and_used_without_docker(
    run, settings, volume, base_image
):
    built = run("zoo", "build", "--builtin", environ=settings)
    assert built.out.startswith(f"{settings['ELASTICDL_IMAGE_REPOSITORY']}:"), built
    pushed = run("zoo", "push", "--builtin", environ=settings)
    reference = pushed.out.strip()
    assert reference.startswith(f"{settings['ELASTICDL_IMAGE_REPOSITORY']}@sha256:"), pushed

    random = np.random.default_rng(0)
    columns = {
        "image": random.uniform(0, 255, (64, 28, 28)).astype(np.float32),
        "label": random.integers(0, 10, (64, 1)),
    }
    support.write(volume.directory / "mnist.recordio", columns)
    trained = run(
        *("train", f"--image={reference}", "--model_def=mnist.MnistElasticDLSpec", "--quiet"),
        *(f"--data={POD}/mnist.recordio", f"--output={POD}/trained"),
        environ={**settings, "DOCKER_HOST": "tcp://127.0.0.1:1"},
    )
    assert trained.status == 0, trained.err
    model = artifact.read(str(volume.directory / "trained"))
    assert model.docker_commit_id == f"docker-pullable://{reference}"
