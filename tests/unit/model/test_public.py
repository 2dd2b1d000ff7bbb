"""`import elasticdl` gives exactly the public names, fast and without TensorFlow."""

import subprocess
import sys

import pytest

import elasticdl

PUBLIC = {
    "Cancelled", "ElasticDLError", "ElasticDLSpec", "Job", "Mode", "UserCodeError", "UserError",
    "__version__", "evaluate", "load", "predict", "train",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(elasticdl.__all__) == set(dir(elasticdl)) == PUBLIC
    for name in PUBLIC:
        assert getattr(elasticdl, name) is not None


def test_other_names_are_missing_as_in_any_module():
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        elasticdl.fit  # noqa: B018


@pytest.mark.parametrize(
    "use",
    [
        "import elasticdl",
        "from elasticdl import ElasticDLSpec, Mode, UserError, Cancelled",
        "from elasticdl.python.common.constants import Mode",
        "from elasticdl import Job, train, evaluate, predict",
    ],
)
def test_no_public_name_imports_tensorflow(use):
    check = f"{use}\nimport sys\nassert not {{'tensorflow', 'keras', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_importing_the_package_imports_nothing_of_it_but_the_version():
    check = (
        "import sys\nimport elasticdl\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'elasticdl'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", check], check=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.split() == ["elasticdl", "elasticdl.version"]


def test_mode_reads_as_the_documents_constants():
    assert (elasticdl.Mode.TRAINING, elasticdl.Mode.PREDICTION) == ("training", "prediction")
    assert elasticdl.Mode("evaluation") is elasticdl.Mode.EVALUATION
