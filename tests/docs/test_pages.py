"""What the pages tell people to type works as written."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from elasticdl.data import examples, recordio

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+) (run|file=\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def carry_out(page, home):
    """Writes the page's files below `home` and runs its commands there, in their order."""
    environ = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    text = (ROOT / page).read_text()
    for block in BLOCK.finditer(text):
        language, task, content = block.groups()
        if task.startswith("file="):
            file = home / task.removeprefix("file=")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            continue
        shell = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
        run = subprocess.run(
            [*shell[language], content],
            cwd=home,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        line = text.count("\n", 0, block.start()) + 1
        assert run.returncode == 0, f"{page}, line {line}:\n{content}\n{run.stdout}"


def test_the_readme_runs_as_written(tmp_path):
    carry_out("README.md", tmp_path)
    assert {"trained_model.pb", "zoo"} <= {
        file.name for file in (tmp_path / "my_trained_model").iterdir()
    }
    assert list((tmp_path / "predictions").glob("part-*.recordio"))
    assert (tmp_path / "predicted.recordio").stat().st_size > 0


def test_the_model_contracts_models_build_and_take_a_batch(tmp_path):
    columns = {
        "features": np.linspace(0, 1, 300, dtype=np.float32).reshape(100, 3),
        "quality": np.linspace(0, 1, 100, dtype=np.float32),
    }
    (tmp_path / "wine").mkdir()
    with recordio.Writer(tmp_path / "wine" / "all.recordio") as writer:
        writer.extend(examples.encode(columns))
    carry_out("docs/model-contract.md", tmp_path)


@pytest.mark.parametrize(
    "name", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(name):
    page = ROOT / name if name == "README.md" else ROOT / "docs" / name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
