"""A run's folder.

It holds config.toml, metrics.jsonl and .csv, checkpoints/, frames/, distilled.safetensors,
distilled.png or .csv, and evaluation.json.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from potstill import files
from potstill.config.config import (
    Given,
    Resolved,
    configuration,
    options_from_file,
    options_from_toml,
    resolved,
    text_of_file,
    to_toml,
)
from potstill.config.sections import STARTED, DataConfig
from potstill.data.preparation import RealData, cut_of
from potstill.data.preprocessing import Preprocess
from potstill.distillation import frames, prepared
from potstill.distillation.boosting import made_blocks
from potstill.distillation.checkpoints import (
    CHECKPOINTS,
    CONFIG,
    Checkpoints,
    refuse_data,
)
from potstill.distillation.locks import LOCK, LOCKED, locked_by
from potstill.distillation.logs import TENSORBOARD, as_csv
from potstill.distillation.packing import unpack
from potstill.distillation.prepared import Prepared
from potstill.distillation.replacing import REPLACED, UNFINISHED, put_back, set_aside, sweep
from potstill.distilled import artefact
from potstill.distilled.reading import check_tensor
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.records import AUDIT, DIAGNOSIS, EVALUATION
from potstill.parameterisations.base import Parameterisation
from potstill.records.metadata import SetMetadata
from potstill.records.metrics import StepRecord
from potstill.records.plain import Unreadable

METRICS, CURVES, PICTURE, TABLE, REPORT = (
    "metrics.jsonl",
    "metrics.csv",
    "distilled.png",
    "distilled.csv",
    "report.html",
)
PREPARATION = "preparation.safetensors"
MARK = "# potstill"
"""How the configuration of a run begins."""
WRITTEN = (
    METRICS,
    CURVES,
    TENSORBOARD,
    CHECKPOINTS,
    frames.FRAMES,
    PREPARATION,
    artefact.ARTEFACT,
    EVALUATION,
    AUDIT,
    PICTURE,
    TABLE,
    REPORT,
    DIAGNOSIS,
    STARTED,
)
"""What a run writes in its folder, beside its configuration."""


class RunFolder:
    """One run on disk.

    Files are replaced as a whole: a full disk or a kill leaves the earlier file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = Checkpoints(path)

    @classmethod
    def create(
        cls,
        path: Path,
        config: Resolved,
        *,
        overwrite: bool = False,
        start: DistilledSet | None = None,
    ) -> "RunFolder":
        """Make the folder of a new run, with its complete configuration.

        Args:
            path: the folder.
            config: the options.
            overwrite: replace a run that is there.
            start: the set that the run starts from, which the folder keeps.
        Raises:
            InputError: a run or other files are there, or the folder cannot be made.
        """
        run = cls(path)
        cls.check_free(path, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with run.locked():
                sweep(path)
                try:
                    run.set_aside()
                    (path / CHECKPOINTS).mkdir(exist_ok=True)
                    if start:
                        artefact.save(start, path / STARTED)
                    run.write_config(config)
                except BaseException:
                    put_back(path, CONFIG)
                    raise
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {path}: {error.strerror}; choose another with --out"
            ) from error
        return run

    @classmethod
    def check_free(cls, path: Path, *, overwrite: bool = False) -> None:
        """Raise an InputError if `path` holds anything, except a run that is to be overwritten."""
        cls(path).recover()
        occupied = path.exists() and not holds_no_run(path)
        if occupied and not cls(path).is_run:
            raise InputError(
                f"{path} exists and is no run of potstill; choose another folder with --out"
            )
        if occupied and not overwrite:
            raise InputError(
                f"{path} already holds a run; go on with `potstill distill --resume {path}`, or "
                "replace it with --overwrite"
            )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the folder of an existing run; raise an InputError if there is none."""
        cls(path).recover()
        if not (path / CONFIG).is_file():
            raise InputError(
                f"{path} holds no run of potstill (it has no {CONFIG}); check the path"
            )
        return cls(path)

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run of potstill, by the first line of its config.toml."""
        if not (self.path / CONFIG).is_file():  # a named pipe would be waited for
            return False
        try:
            with (self.path / CONFIG).open(encoding="utf-8") as file:
                return file.readline().startswith(MARK)
        except (OSError, UnicodeDecodeError):
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the run; raise an InputError if another is in it."""
        lock = locked_by(self.path)
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> None:
        """Move an overwritten run's files to .replaced/, until the new set is written."""
        if self.is_run:
            # A finished set from before is worth more than an unfinished run.
            keep = (self.path / REPLACED).exists() and not self.finished
            set_aside(self.path, CONFIG, WRITTEN, keep=keep)

    def recover(self) -> None:
        """Put back a run that was being replaced, if that was cut off.

        Nothing is done while another process works on the run, or where nothing can be written.
        """
        cut_off = not (self.path / CONFIG).exists() and (self.path / REPLACED / CONFIG).is_file()
        with suppress(InputError, OSError):
            if cut_off:
                with self.locked():
                    put_back(self.path, CONFIG)

    def ready(self, say: Callable[[str], None]) -> None:
        """Make what a kill or a stranger's hand left of the folder fit to go on.

        Args:
            say: receives a sentence if a damaged set is moved away.
        """
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        for folder in (self.path, self.path / CHECKPOINTS, self.path / frames.FRAMES):
            sweep(folder)
        if not self.finished:
            return
        try:
            artefact.load(self.path)
        except InputError as error:
            damaged = self.path / f"{artefact.ARTEFACT}.damaged"
            (self.path / artefact.ARTEFACT).replace(damaged)
            say(f"{error}; it is now {damaged.name}, and is made again from the last checkpoint")

    @property
    def replaced(self) -> Path | None:
        """The folder of the set that this run is to replace; None: there is none."""
        aside = self.path / REPLACED
        return aside if (aside / artefact.ARTEFACT).is_file() else None

    def drop_replaced(self) -> None:
        """Remove what `set_aside` kept, and what only an unfinished run needs."""
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)
        (self.path / PREPARATION).unlink(missing_ok=True)

    def keep_preparation(self, real: RealData, config: Resolved, one: Parameterisation) -> None:
        """Write what was derived from the data, for `snapshot`, `fitted` and `require_data`.

        A finished set holds it itself.
        """
        prepared.keep(self.path / PREPARATION, real, config, one)

    def preparation(self) -> Prepared | None:
        """Return what `keep_preparation` wrote; None if it is missing or damaged."""
        return prepared.kept(self.path / PREPARATION)

    def fitted(self, config: Given, identity: str) -> Preprocess | None:
        """Return the preprocessing that was fitted when the run began.

        None if it is not known, or was fitted to other data or with other options.
        """
        if self.finished:
            distilled = artefact.load(self.path)
            data = distilled.metadata.data
            return distilled.fitted if data and data.whole_identity == identity else None
        kept = self.preparation()
        return kept.fitted if kept and kept.described.cut == cut_of(config, identity) else None

    def require_data(self, identity: str) -> None:
        """Raise an InputError if the run was begun with other data or weights, if that is known."""
        kept = self.preparation()
        known = kept.described.data if kept else None
        if known is None and self.finished:
            known = artefact.load(self.path).metadata.data
        if known and known.whole_identity != identity:
            refuse_data(self.path)

    def snapshot(self) -> DistilledSet | None:
        """Return an unfinished run's set at its newest complete checkpoint, or None."""
        kept = self.preparation()
        if not kept:
            return None
        config, known = self.config(), kept.described
        learn_labels = config.distilled.learn_labels
        one = kept.parameterisation(learn_labels)
        for path in reversed(self.checkpoints.files):
            try:
                state = unpack(*files.load_tensors(path, "checkpoint"))
                blocks = made_blocks({**state.carried.earlier, **state.leaves}, one)
                for block, (name, shape) in itertools.product(blocks, one.shapes.items()):
                    check_tensor(name, block.leaves[name], shape)
            except (InputError, Unreadable, KeyError):
                continue
            recipe = Recipe.of(self.resolved_config(), config.evaluation.lengths[0])
            metadata = SetMetadata(config.method.name, seed=config.run.seed, data=known.data)
            return DistilledSet(
                blocks, known.class_names, kept.fitted, recipe,
                learned_labels=learn_labels, metadata=metadata,
            )  # fmt: skip
        return None

    def config(self) -> Given:
        """Return the configuration that the run was started with."""
        return configuration(options_from_file(self.path / CONFIG))

    def data_config(self) -> DataConfig:
        """Return where the data are and how they are read; the run's parts need not be here."""
        path = self.path / CONFIG
        return configuration(options_from_toml(text_of_file(path), str(path), only="data")).data

    def resolved_config(self) -> Resolved:
        """Return the configuration of a run that began, without "auto"."""
        return resolved(self.config())

    @property
    def finished(self) -> bool:
        """Whether the distilled set is in the folder."""
        return (self.path / artefact.ARTEFACT).is_file()

    def complete(self, config: Given | Resolved) -> bool:
        """Return whether the set is there and the run has taken all the steps of `config`.

        Raises:
            InputError: `config` is not that of a run that began.
        """
        if config.outer.steps == "auto":
            raise InputError(
                f"the {CONFIG} of the run in {self.path} must say its steps, it does not; put the "
                "file back, or start a new run"
            )
        return self.finished and self.checkpoints.newest_step >= config.all_steps

    def write_config(self, config: Resolved) -> None:
        """Write the configuration, over that of before if there is one."""
        files.write(self.path / CONFIG, to_toml(config, f"potstill distill --config {CONFIG}"))

    def keep_earlier_set(self) -> Path | None:
        """Move a set that is there, and what was measured of it, to a folder of their own.

        A set that the run gives later takes their place. Returns the folder; None without a set.
        """
        if not self.finished:
            return None
        step = artefact.load(self.path).metadata.outer_step
        aside = self.path / f"set-of-step-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name in (artefact.ARTEFACT, EVALUATION, AUDIT, PICTURE, TABLE, REPORT):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        return aside

    def log(self, record: StepRecord) -> None:
        """Append one record to metrics.jsonl."""
        line = record.line
        with self.writing(METRICS), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line)

    def write_curves(self) -> None:
        """Write metrics.csv, what metrics.jsonl holds so far as a table."""
        with self.writing(CURVES):
            files.write(self.path / CURVES, as_csv(self.records()))

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Turn what the system says against writing a file into a sentence."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.path / name}: {error.strerror}; go on with --resume "
                f"{self.path}"
            ) from error

    def records(self) -> list[StepRecord]:
        """Return the logged records, without lines that are none."""
        return self.logged()[0]

    def logged(self) -> tuple[list[StepRecord], int]:
        """Return the logged records, and how many lines are none.

        A kill may cut the last line short; that one is not counted.
        """
        path, records, unread = self.path / METRICS, [], 0
        if not path.is_file():  # a named pipe would be waited for
            return [], 0
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                records.append(StepRecord.of_line(line))
            except Unreadable:
                unread += number < len(lines)
        return records, unread

    def forget_after(self, step: int) -> None:
        """Cut the log after `step`, from which a resumed run starts, and drop what is of later."""
        frames.forget_after(self.path, step)
        kept = [record.line for record in self.records() if record.step <= step]
        files.write(self.path / METRICS, "".join(kept))
        self.checkpoints.forget_after(step)


def holds_no_run(path: Path) -> bool:
    """Return whether a folder is empty, but for what a kill or a full disk may have left there.

    That is what `RunFolder.create` writes before the configuration, in its order.
    """
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir() if not UNFINISHED.fullmatch(entry.name)}
    names -= {LOCK, LOCKED}
    kept = path / CHECKPOINTS
    if kept.is_dir() and not any(kept.iterdir()):
        names -= {CHECKPOINTS, STARTED}
    return not names
