"""The zoo that `elasticdl zoo init` begins works as it stands."""

import subprocess
import sys

from tests.jobs import support


def test_the_test_of_the_template_passes(run, tmp_path):
    ended = run("zoo", "init", str(tmp_path / "zoo"))
    assert ended.status == 0, ended.err
    environ = support.clean_environment(tmp_path)
    path = f"{support.ELASTICDL.parent}:{environ['PATH']}"
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "zoo",
        env={**environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout
