"""The layers hold, a violation does not go unseen, and the base install stays light."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]

# Where an import is called something else than the distribution that it comes from.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "google": "protobuf",
    "google_crc32c": "google-crc32c",
    "grpc": "grpcio",
    "tensorflow": "tensorflow-cpu",
}


def lint(package):
    return subprocess.run(
        [*LINT, "--no-cache"], cwd=package.parent, capture_output=True, text=True, check=False
    )


def outcomes(report):
    """Contract name → KEPT or BROKEN, as import-linter printed them."""
    return dict(re.findall(r"^(.+) (KEPT|BROKEN)$", report.stdout, re.MULTILINE))


@pytest.fixture
def package(tmp_path):
    """A copy of the package, with the project's rules, to plant things in."""
    shutil.copytree(
        ROOT / "elasticdl", tmp_path / "elasticdl", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path / "elasticdl"


def test_the_package_keeps_every_contract(package):
    report = lint(package)
    assert report.returncode == 0, report.stdout + report.stderr
    assert set(outcomes(report).values()) == {"KEPT"}


LAYERS = "Imports point down the layers"
PURE = "core decides: no clock, thread, file, socket, log, numpy, environment"
LIGHT = "Submission and master import neither TensorFlow nor torch"


@pytest.mark.parametrize(
    ("where", "planted", "contract"),
    [
        ("core/streams.py", "import elasticdl.worker", LAYERS),
        ("worker/__init__.py", "import elasticdl.master", LAYERS),
        ("core/streams.py", "import time", PURE),
        ("master/__init__.py", "import tensorflow", LIGHT),
        ("data/recordio.py", "import torch", LIGHT),
    ],
)
def test_a_planted_import_breaks_the_contract_that_forbids_it(package, where, planted, contract):
    file = package / where
    # Inside a function: an import that happens late is an import all the same.
    file.write_text(f"{file.read_text()}\n\ndef late() -> None:\n    {planted}\n")
    report = lint(package)
    assert report.returncode == 1
    assert outcomes(report)[contract] == "BROKEN"


def test_a_new_part_has_to_be_given_a_layer(package):
    (package / "planted.py").write_text('"""In no layer."""\n')
    report = lint(package)
    assert report.returncode == 1
    assert outcomes(report)[LAYERS] == "BROKEN"
    assert "planted" in report.stdout


def test_what_submits_and_coordinates_loads_neither_tensorflow_nor_torch():
    program = (
        "import sys, elasticdl.api, elasticdl.cli.main, elasticdl.master.service\n"
        "from elasticdl import ElasticDLSpec, Mode, train\n"
        "print(sorted({'keras', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def imported(tree):
    """The top-level packages that a module imports, early or late."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_what_the_package_imports_is_what_it_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["worker"]
    declared = {re.match(r"[\w.-]+", requirement).group() for requirement in requirements}
    foreign = {
        name
        for file in (ROOT / "elasticdl").rglob("*.py")
        for name in imported(ast.parse(file.read_text()))
        if name not in sys.stdlib_module_names and name != "elasticdl"
    }
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} == declared
