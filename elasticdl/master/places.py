"""Where a job's files stand: in a work directory until the result is published whole."""

import contextlib
import dataclasses
import enum
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from elasticdl.cluster import local
from elasticdl.config import JobConfig
from elasticdl.data import outputs
from elasticdl.errors import UserError
from elasticdl.master import claim
from elasticdl.master import definition as definitions
from elasticdl.model import artifact

_PART = "part-*.recordio"
_CLAIM = "claim"
_SCRATCH = "tmp"
_PUBLISHING = "publishing"
_HISTORIES = ("metrics.jsonl", "events.jsonl")
_END_S = 10.0
_RETRIES = 10
_RETRY_S = 0.1


def one_file(config: JobConfig) -> bool:
    """Whether the output names one file of predictions and not a directory of parts."""
    return config.kind == "predict" and config.output.endswith(".recordio")


class Beginning(enum.Enum):
    """What a master finds in its output's work directory, and goes on from."""

    ANEW = "nothing that it could go on from"
    RESUME = "checkpoints, or parts, of the same job, none of whose processes lives"
    TAKEOVER = "the same job, whose workers live or have only just been alive"
    PUBLISHED = "the same job's complete result, in the output or on its way there"


@dataclass
class Places:
    """The claimed output of a job.

    Args:
        output: the output; None for an evaluation that only prints.
        work: everything that the job writes before its result is published.
        made: directories that did not exist before, outermost first.
        beginning: what was found there.
        definition: the job, as it was decided by its first master.
    """

    output: Path | None
    work: Path
    made: list[Path]
    claim: claim.Claim
    beginning: Beginning = Beginning.ANEW
    definition: definitions.Definition | None = None

    @classmethod
    def of(
        cls, config: JobConfig, *, again: str = "", submission: str = "", term: int = 0
    ) -> "Places":
        """Makes the work directory, claims the output, and finds out what there is to go on from.

        Args:
            again: the work directory of this very job, whose last master has died.
            submission, term: as in `Loop`.

        Raises:
            UserError: the output has a result already, or another job, or cannot be written; or
                what it has does not agree with the settings or the data.
        """
        with outputs.writing(config.output):
            made: list[Path] = []
            defined = None
            if not config.output:
                output = None
                if not again:
                    defined = definitions.Definition.of(config, 1)
                work = Path(again or tempfile.mkdtemp(prefix="elasticdl-"))
                made.append(work)
            else:
                output = Path(config.output).absolute()
                beside = output.with_name(output.name + ".elasticdl")
                work = beside if one_file(config) else output / ".elasticdl"
                if not work.exists():
                    # Where nothing has been, nothing is made before the data are known.
                    defined = definitions.Definition.of(config, 1)
            try:
                places = cls(output, work, made, _claimed(work, made, config))
            except BaseException:
                _remove_empty(made)
                raise
            try:
                places._begin(config, bool(again), defined, submission, term)
            except BaseException:
                places._leave()
                raise
        return places

    def _begin(
        self,
        config: JobConfig,
        again: bool,
        defined: definitions.Definition | None,
        submission: str,
        least_term: int,
    ) -> None:
        before = definitions.Definition.read(self.work)
        again = again or bool(submission and before and before.submission == submission)
        alive = local.observed(str(self.locator))
        same = before is not None and not definitions.other_command(before.config, config)
        if alive and not again and not config.restart and before is not None and not same:
            other = definitions.other_command(before.config, config)
            raise UserError(
                f"output: workers of job {before.config.job_name} ({other}) still run there "
                f"without a master. Wait orphan_s = {before.config.orphan_s:g} s for them to end, "
                f"give the same command to take them over, or end them with `elasticdl job stop "
                f"{before.config.job_name}`."
            )
        goes_on = before is not None and (again or (same and not config.restart))
        takeover = goes_on and (again or bool(alive))
        published = goes_on and self.publication is not None
        # A result that is there while the job goes on is its own, or it was to be replaced.
        if self.output is not None and not (takeover or published):
            _refuse_result(config, self.output)
        self._end_workers({} if takeover else alive)
        term = max(before.term if before else 0, self._newest_term(), least_term - 1) + 1
        if published and before is not None:
            self.beginning = Beginning.PUBLISHED
            self.definition = dataclasses.replace(before, term=term)
        elif takeover and before is not None:
            self.beginning = Beginning.TAKEOVER
            # The command may ask for another number of workers; all else is the same. A master that
            # takes another one's place asks for as many as that one did.
            asked = before.config if again else config
            kept = dataclasses.replace(
                before.config, num_workers=asked.num_workers, min_workers=asked.min_workers
            )
            self.definition = dataclasses.replace(before, config=kept, term=term)
        else:
            self.definition = (
                dataclasses.replace(defined, term=term)
                if defined is not None
                else definitions.Definition.of(config, term)
            )
            self.beginning = self._what_is_left(before, self.definition, same)
            if self.beginning is Beginning.ANEW:
                self._clear()
        self.logs.mkdir(exist_ok=True)
        self.result.mkdir(exist_ok=True)
        self.definition = dataclasses.replace(self.definition, submission=submission)
        self.definition.write(self.work)

    def scaled(self, num_workers: int) -> None:
        """A later master is to have so many workers."""
        assert self.definition is not None
        config = dataclasses.replace(self.definition.config, num_workers=num_workers)
        self.definition = dataclasses.replace(self.definition, config=config)
        self.definition.write(self.work)

    def _what_is_left(
        self,
        before: definitions.Definition | None,
        now: definitions.Definition,
        same: bool,
    ) -> Beginning:
        checkpoints = any(self.checkpoints.glob("[!.]*"))
        if now.config.restart:
            return Beginning.ANEW
        if before is None or before.config.kind != now.config.kind:
            if checkpoints:
                raise UserError(
                    f"output: {now.config.output} has checkpoints of another training, in "
                    f"{self.checkpoints}. Choose another --output, or remove them."
                )
            return Beginning.ANEW
        if now.config.kind == "train" and checkpoints:
            other = definitions.other_training(before, now)
            if other:
                raise UserError(
                    f"{other}. There are checkpoints in {self.checkpoints}: give the same "
                    "settings and data to go on from them, --restart to begin anew, or "
                    "--from_checkpoint in another output to begin with their weights."
                )
            return Beginning.RESUME
        if now.config.kind == "predict" and same and before.data == now.data:
            return Beginning.RESUME
        return Beginning.ANEW

    def _newest_term(self) -> int:
        terms = (re.match(r"checkpoint-t(\d+)-", path.name) for path in self._checkpoint_files())
        return max((int(found[1]) for found in terms if found), default=0)

    def _checkpoint_files(self) -> list[Path]:
        return sorted(self.checkpoints.glob("checkpoint-*"))

    @staticmethod
    def _end_workers(alive: Mapping[str, psutil.Process]) -> None:
        """Kills what still runs of a job that is not to go on."""
        for process in alive.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive.values(), timeout=_END_S)

    @property
    def locator(self) -> Path:
        """Where workers find the address of their master."""
        return self.work / "master.json"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints stand until the result is published with them."""
        return self.work / "checkpoints"

    @property
    def scratch(self) -> Path:
        """A directory for what workers put aside, which is removed with the job."""
        link = self.work / _SCRATCH
        if not link.is_dir():
            link.unlink(missing_ok=True)
            # Not in the work directory itself, whose path may be too long for sockets.
            link.symlink_to(tempfile.mkdtemp(prefix="elasticdl-"))
        return Path(os.path.realpath(link))

    @property
    def parts(self) -> set[str]:
        """The names of the parts of a prediction that are done."""
        return {path.name for path in self.result.glob(_PART)}

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
        self._remove_scratch()
        for entry in self.work.iterdir():
            if entry.name != _CLAIM:
                _remove(entry)

    @property
    def publication(self) -> str | None:
        """The complete result that is being published, or has been; None: there is none."""
        try:
            return (self.work / _PUBLISHING).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _publishes(self, result: str) -> None:
        """From now on a master that dies leaves the rest of the publication to the next one."""
        aside = self.work / f".{_PUBLISHING}"
        aside.write_text(result, encoding="utf-8")
        os.replace(aside, self.work / _PUBLISHING)

    def publish_model(self, result: Path, *, overwrite: bool) -> None:
        """Moves a trained model into the output, with histories, logs/ and checkpoints/.

        Done again after it was interrupted, it goes on; as do the other publications.
        """
        assert self.output is not None
        if self.publication is None:
            # Of a training that ended before its first line.
            for name in _HISTORIES:
                (self.work / name).touch()
            (self.work / "logs").mkdir(exist_ok=True)
            self._publishes(str(result))
        for name in (*_HISTORIES, "logs"):
            if (self.work / name).exists():
                os.replace(self.work / name, result / name)
        if self._checkpoint_files():
            os.replace(self.checkpoints, result / self.checkpoints.name)
        if (result / artifact.TRAINED_MODEL).exists():
            artifact.publish(result, self.output, overwrite)

    def publish_parts(self, slices: int) -> None:
        """Moves the parts of a prediction into the output directory, in place of older ones; or
        makes one file of them, in the order of the slices, where the output names a file.
        """
        assert self.output is not None
        parts = [self.result / outputs.part_name(number, slices) for number in range(slices)]
        if self.work.parent == self.output:
            if self.publication is None:
                for old in self.output.glob(_PART):
                    old.unlink()
                self._publishes("")
            for part in parts:
                if part.exists():
                    os.replace(part, self.output / part.name)
            return
        whole = self.work / "whole"
        if self.publication is None:
            self._join(parts, whole)
            self._publishes("")
        if whole.exists():
            os.replace(whole, self.output)

    @staticmethod
    def _join(parts: list[Path], whole: Path) -> None:
        # Valid RecordIO files, one behind the other, are a valid RecordIO file.
        with whole.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
                part.unlink()
            target.flush()
            os.fsync(target.fileno())

    def publish_file(self, name: str, content: str) -> None:
        """Writes one small text file into the output, whole or not at all."""
        if self.output is not None:
            aside = self.work / name
            aside.write_text(content, encoding="utf-8")
            os.replace(aside, self.output / name)

    def discard(self, *, keep_logs: bool = False) -> None:
        """Gives the output up: removes the work directory, and what was made for it if empty.

        Checkpoints stay, with all that a later training needs to go on from them.
        """
        self._remove_scratch()
        kept = {_CLAIM}
        if keep_logs:
            kept.add(self.logs.name)
        if self._checkpoint_files():
            kept |= {self.checkpoints.name, definitions.FILE, "logs", *_HISTORIES}
        # What cannot be removed stays; that is no reason to tell the user anything else.
        with contextlib.suppress(OSError):
            for entry in self.work.iterdir():
                if entry.name not in kept:
                    _remove(entry)
        self._leave()

    def _remove_scratch(self) -> None:
        link = self.work / _SCRATCH
        if link.is_symlink():
            shutil.rmtree(os.path.realpath(link), ignore_errors=True)

    def _leave(self) -> None:
        self.claim.release()
        # Not with what is in them: from here on another job may have made itself at home there.
        _remove_empty([*self.made, self.work])


def _claimed(work: Path, made: list[Path], config: JobConfig) -> claim.Claim:
    """The claim on `work`; it and the directories above it are made, and added to `made`."""
    # The output's last owner may be removing directories until we have claimed it; and a master
    # whose command was killed takes a moment to go.
    for _ in range(_RETRIES):
        try:
            return _claimed_at_once(work, made, config)
        except FileNotFoundError:
            continue
        except claim.Taken:
            time.sleep(_RETRY_S)
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
