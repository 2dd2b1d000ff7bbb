"""Where a job's files stand: in a work directory until the result is published whole."""

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from elasticdl.config import JobConfig
from elasticdl.data import outputs
from elasticdl.errors import UserError
from elasticdl.master import claim

_PART = "part-*.recordio"
_CLAIM = "claim"
_RETRIES = 10


def one_file(config: JobConfig) -> bool:
    """Whether the output names one file of predictions and not a directory of parts."""
    return config.kind == "predict" and config.output.endswith(".recordio")


@dataclass
class Places:
    """The claimed output of a job.

    Args:
        output: the output; None for an evaluation that only prints.
        work: everything that the job writes before its result is published.
        made: directories that did not exist before, outermost first.
    """

    output: Path | None
    work: Path
    made: list[Path]
    claim: claim.Claim

    @classmethod
    def of(cls, config: JobConfig) -> "Places":
        """Makes the work directory and claims the output.

        Raises:
            UserError: the output has a result already, or another job, or cannot be written.
        """
        with outputs.writing(config.output):
            if not config.output:
                output, work = None, Path(tempfile.mkdtemp(prefix="elasticdl-"))
                made = [work]
            else:
                output = Path(config.output).absolute()
                beside = output.with_name(output.name + ".elasticdl")
                work = beside if one_file(config) else output / ".elasticdl"
                made = []
            try:
                places = cls(output, work, made, _claimed(work, made, config))
            except BaseException:
                _remove_empty(made)
                raise
            try:
                if output is not None:
                    _refuse_result(config, output)
                places._clear()
            except BaseException:
                places.discard()
                raise
        return places

    @property
    def logs(self) -> Path:
        """Directory of the workers' logs."""
        return self.work / "workers"

    @property
    def result(self) -> Path:
        """Where members put the result together."""
        return self.work / "result"

    def _clear(self) -> None:
        """Removes what a job that died here has left, and makes room."""
        for entry in self.work.iterdir():
            if entry.name != _CLAIM:
                _remove(entry)
        self.logs.mkdir()
        self.result.mkdir()

    def add_history(self, directory: Path) -> None:
        """Moves metrics.jsonl and logs/ to a result, with which they are published."""
        # Of a training that ended before its first line.
        (self.work / "metrics.jsonl").touch()
        (self.work / "logs").mkdir(exist_ok=True)
        for name in ("metrics.jsonl", "logs"):
            os.replace(self.work / name, directory / name)

    def publish_parts(self, slices: int) -> None:
        """Moves the parts of a prediction into the output directory, in place of older ones; or
        makes one file of them, in the order of the slices, where the output names a file.
        """
        assert self.output is not None
        parts = [self.result / outputs.part_name(number, slices) for number in range(slices)]
        if self.work.parent == self.output:
            for old in self.output.glob(_PART):
                old.unlink()
            for part in parts:
                os.replace(part, self.output / part.name)
            return
        # Valid RecordIO files, one behind the other, are a valid RecordIO file.
        whole = self.work / "whole"
        with whole.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
                part.unlink()
            target.flush()
            os.fsync(target.fileno())
        os.replace(whole, self.output)

    def publish_file(self, name: str, content: str) -> None:
        """Writes one small text file into the output, whole or not at all."""
        if self.output is not None:
            aside = self.work / name
            aside.write_text(content, encoding="utf-8")
            os.replace(aside, self.output / name)

    def discard(self, *, keep_logs: bool = False) -> None:
        """Gives the output up: removes the work directory, and what was made for it if empty."""
        # What cannot be removed stays; that is no reason to tell the user anything else.
        with contextlib.suppress(OSError):
            for entry in self.work.iterdir():
                if entry.name != _CLAIM and not (keep_logs and entry == self.logs):
                    _remove(entry)
        self.claim.release()
        # Not with what is in them: from here on another job may have made itself at home there.
        _remove_empty([*self.made, self.work])


def _claimed(work: Path, made: list[Path], config: JobConfig) -> claim.Claim:
    """The claim on `work`; it and the directories above it are made, and added to `made`."""
    # The output's last owner may be removing directories until we have claimed it.
    for _ in range(_RETRIES):
        with contextlib.suppress(FileNotFoundError):
            return _claimed_at_once(work, made, config)
    return _claimed_at_once(work, made, config)


def _claimed_at_once(work: Path, made: list[Path], config: JobConfig) -> claim.Claim:
    for each in (*reversed(work.parents), work):
        if not each.is_dir():
            # There by now: of another job, which may remove it again, or a file, seen a line later.
            with contextlib.suppress(FileExistsError):
                each.mkdir()
                made.append(each)
    return claim.Claim(work / _CLAIM, config.output, config.job_name)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _remove_empty(directories: list[Path]) -> None:
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _refuse_result(config: JobConfig, output: Path) -> None:
    """Raises UserError: there is a result that must not be replaced, or cannot be."""
    if one_file(config) and output.is_dir():
        raise UserError(
            f"output: expected a file, as its name ends in .recordio; got a directory, "
            f"{config.output}. Choose another --output."
        )
    if config.overwrite:
        return
    if config.kind == "train":
        found = [output / "trained_model.pb"]
    elif config.kind == "evaluate":
        found = [output / "metrics.json"]
    elif one_file(config):
        found = [output]
    else:
        found = sorted(output.glob(_PART))[:1]
    if any(path.exists() for path in found):
        raise UserError(
            f"output: {config.output} already has a result ({found[0].name}). Choose another "
            "--output, or replace it with --overwrite."
        )
