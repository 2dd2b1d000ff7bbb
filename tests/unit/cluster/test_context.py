"""Which files of a zoo go into an image."""

import io
import tarfile

import pytest

from elasticdl.cluster import context, image
from elasticdl.errors import UserError


@pytest.fixture
def zoo(tmp_path):
    (tmp_path / "requirements.txt").write_text("six\n")
    (tmp_path / "model.py").write_text("model")
    return tmp_path


def names(zoo):
    return [entry.name for entry in context.zoo_entries(zoo)]


def test_its_files_but_no_history_environment_bytecode_or_data(zoo):
    for name in (
        ".git/config",
        "env/pyvenv.cfg",
        "env/lib/six.py",
        "__pycache__/model.pyc",
        "deep/__pycache__/a.pyc",
        "data/a.recordio",
        "deep/other.py",
    ):
        path = zoo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert names(zoo) == ["deep/other.py", "model.py", "requirements.txt"]


def test_what_dockerignore_names_stays_out(zoo):
    (zoo / ".dockerignore").write_text("notes\n*.md\n!keep.md\n")
    (zoo / "notes").mkdir()
    for name in ("notes/a", "a.md", "keep.md"):
        (zoo / name).touch()
    assert names(zoo) == [".dockerignore", "keep.md", "model.py", "requirements.txt"]


def test_what_dockerignore_lets_in_again_is_never_history_or_bytecode(zoo):
    (zoo / ".dockerignore").write_text("*\n!requirements.txt\n!.git*\n!env\n!__pycache__\n!deep\n")
    for name in (".git/config", ".git/a", "__pycache__/a.pyc", "env/pyvenv.cfg", "env/a", "deep/a"):
        (zoo / name).parent.mkdir(exist_ok=True)
        (zoo / name).touch()
    assert names(zoo) == [".dockerignore", "deep/a", "requirements.txt"]


def test_the_directory_that_a_zoo_calls_custom_stays_its_own(zoo):
    linked = image.steps(context.zoo_entries(zoo))[-1].entries
    assert [each.link for each in linked if each.name == "custom"] == ["."]
    (zoo / "custom").mkdir()
    (zoo / "custom" / "model.py").touch()
    entries = image.steps(context.zoo_entries(zoo))[-1].entries
    assert not any(each.link for each in entries)


def test_without_requirements_it_is_said_how_to_make_them(zoo):
    (zoo / "requirements.txt").unlink()
    with pytest.raises(UserError, match=f"touch {zoo}/requirements.txt"):
        context.zoo_entries(zoo)


def test_a_large_zoo_names_its_largest_files(zoo):
    with (zoo / "weights.bin").open("wb") as file:
        file.truncate(201 << 20)
    with pytest.raises(UserError, match=r"at most 200 MB .*largest are weights.bin \(211 MB\)"):
        context.zoo_entries(zoo)


def test_equal_contents_have_equal_digests_and_archives(zoo):
    first = context.zoo_entries(zoo)
    digest, archive = context.digest(first), context.archive(first, "model_zoo")
    (zoo / "model.py").write_text("model")
    again = context.zoo_entries(zoo)
    assert (context.digest(again), context.archive(again, "model_zoo")) == (digest, archive)
    (zoo / "model.py").write_text("other")
    assert context.digest(context.zoo_entries(zoo)) != digest
    (zoo / "model.py").write_text("model")
    (zoo / "model.py").chmod(0o755)
    assert context.digest(context.zoo_entries(zoo)) != digest


def test_the_archive_has_directories_files_and_links(zoo):
    entries = [*context.zoo_entries(zoo), context.Entry("custom", None, 0o777, ".")]
    with tarfile.open(fileobj=io.BytesIO(context.archive(entries, "model_zoo"))) as tar:
        found = {member.name: member for member in tar.getmembers()}
    assert found["model_zoo"].isdir()
    assert found["model_zoo/custom"].linkname == "."
    assert found["model_zoo/model.py"].size == len("model")


def test_only_what_needs_installing_is_a_step_and_models_come_last(zoo):
    entries = context.zoo_entries(zoo)
    assert [step.says.split(" (")[0] for step in image.steps(entries)] == [
        "installing what elasticdl needs",
        "installing what the zoo requires",
        "adding elasticdl",
        "adding the zoo",
    ]
    (zoo / "requirements.txt").write_text("\n")
    assert len(image.steps(context.zoo_entries(zoo))) == 3


def test_torch_is_the_pinned_one():
    assert "torch==2.13.0" in image.requirements()


def test_images_for_gpus_have_the_packages_that_bring_cuda_along():
    names = [name.partition("==")[0].partition(">")[0] for name in image.requirements("gpu")]
    assert any(name.startswith("tensorflow[and-cuda]") for name in names)
    assert not any(name.startswith("tensorflow-cpu") for name in names)
    first, *_ = image.steps(None, gpu=True)
    assert "'tensorflow[and-cuda]" in first.command


def test_of_pip_s_settings_those_that_a_build_can_use_are_passed_on(tmp_path):
    settings = {"index-url": "https://mine/simple", "find-links": "/opt/wheels", "cert": "/no"}
    environ = {"PIP_EXTRA_INDEX_URL": "file:///opt/simple https://other/simple"}
    assert image.secrets(environ, settings) == {
        "PIP_INDEX_URL": "https://mine/simple",
        "PIP_EXTRA_INDEX_URL": "https://other/simple",
    }
    assert image.certificates({}, settings) == b""
    (tmp_path / "ca.crt").write_text("authorities")
    assert image.certificates({"PIP_CERT": str(tmp_path / "ca.crt")}, {}) == b"authorities"


def test_what_trained_models_name_an_image_by():
    reference = "registry/zoo@sha256:" + "0" * 64
    assert image.pullable(reference) == f"docker-pullable://{reference}"
    assert image.reference(image.pullable(reference)) == reference
    assert image.pullable("registry/zoo:1") == ""


@pytest.mark.parametrize("given", ["Registry/zoo", "registry/zoo:1", "registry/zoo@sha256:1", "-"])
def test_what_is_no_repository(given):
    with pytest.raises(UserError, match="image_repository: expected a name"):
        image.required_repository(given)


def test_without_a_repository_it_is_said_how_to_set_it_once():
    with pytest.raises(UserError, match=r"~/.config/elasticdl/config.toml"):
        image.required_repository("")
