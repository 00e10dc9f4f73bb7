"""A run's folder: config.toml, metrics.jsonl, checkpoints/, distilled.safetensors, distilled.png, evaluation.json."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import store
from potstill.config import Config, options_from_file, to_toml
from potstill.outer import Best, OuterState, Record
from potstill.registry import InputError

CONFIG, METRICS, CHECKPOINTS, EVALUATION, PICTURE = (
    "config.toml", "metrics.jsonl", "checkpoints", "evaluation.json", "distilled.png",
)  # fmt: skip
KEPT_CHECKPOINTS = 2


class RunFolder:
    """One run on disk. Whatever it replaces, it replaces whole: a full disk or a kill leaves what was there."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Config, *, overwrite: bool = False) -> "RunFolder":
        """A new run with its complete configuration.

        Raises:
            InputError: a run or other files are there, or the folder cannot be made.
        """
        run = cls(path)
        try:
            cls.check_free(path, overwrite=overwrite)
            run.clear()
            (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run folder {path}: {error.strerror}; choose another with --out") from error
        store.write(path / CONFIG, to_toml(config, f"potstill distill --config {CONFIG}"))
        return run

    @staticmethod
    def check_free(path: Path, *, overwrite: bool = False) -> None:
        """Raise an InputError if `path` holds anything, except a run that is to be overwritten."""
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if occupied and not (path / CONFIG).is_file():
            raise InputError(f"{path} exists and is no run of potstill; choose another folder with --out")
        if occupied and not overwrite:
            raise InputError(f"{path} already holds a run; go on with --resume {path}, or replace it with --overwrite")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A run that is there; an InputError if it is not."""
        if not (path / CONFIG).is_file():
            raise InputError(f"{path} holds no run of potstill (it has no {CONFIG}); check the path")
        return cls(path)

    def clear(self) -> None:
        """Remove the run's files and nothing else."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        for name in (METRICS, store.ARTEFACT, EVALUATION, PICTURE):
            (self.path / name).unlink(missing_ok=True)

    def config(self) -> Config:
        """The configuration that the run was started with."""
        return Config.from_options(**options_from_file(self.path / CONFIG))

    @property
    def finished(self) -> bool:
        """Whether the distilled set is there."""
        return (self.path / store.ARTEFACT).is_file()

    def log(self, record: Record) -> None:
        """Append one record to metrics.jsonl."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path / METRICS}: {error.strerror}; go on with --resume {self.path}") from error

    def records(self) -> list[Record]:
        """What was logged; a last line that a kill cut short is left out."""
        path, records = self.path / METRICS, []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def forget_after(self, step: int) -> None:
        """Cut the log to the records up to `step`, the one that a resumed run starts from."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        store.write(self.path / METRICS, "".join(kept))

    def save(self, state: OuterState, fingerprint: str) -> None:
        """Write a checkpoint and drop all but the last two."""
        tensors, meta = pack(state)
        folder = self.path / CHECKPOINTS
        store.save_tensors(folder / f"step-{state.step:08d}.safetensors", tensors, "checkpoint", {**meta, "data": fingerprint})
        for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def newest(self, device: torch.device, say: Callable[[str], None]) -> tuple[OuterState, str] | None:
        """The newest checkpoint that is whole, and the fingerprint of its data; None if there is none. `say` hears of damage."""
        for path in sorted((self.path / CHECKPOINTS).glob("step-*.safetensors"), reverse=True):
            try:
                tensors, meta = store.load_tensors(path, "checkpoint")
            except InputError as error:
                say(f"{error}; trying the checkpoint before")
                continue
            return unpack({name: tensor.to(device) for name, tensor in tensors.items()}, meta), meta["data"]
        return None


def pack(state: OuterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as tensors and plain data."""
    tensors: dict[str, Tensor] = {}
    for name, leaf in state.leaves.items():
        tensors[f"leaves.{name}"] = leaf
        tensors[f"moment1.{name}"], tensors[f"moment2.{name}"] = state.moments[name]
    meta: dict[str, Any] = {
        "step": state.step, "updates": state.updates, "skipped_in_a_row": state.skipped_in_a_row,
        "clip_average": state.clip_average, "method": state.method,
    }  # fmt: skip
    if state.best:  # cloned: the best leaves may be the present ones, and safetensors refuses shared memory
        tensors |= {f"best.{name}": leaf.clone() for name, leaf in state.best.leaves.items()}
        meta["best"] = {"step": state.best.step, "accuracy": state.best.accuracy}
    return tensors, meta


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> OuterState:
    """The state that `pack` was given."""
    parts = {part: store.with_prefix(tensors, f"{part}.") for part in ("leaves", "moment1", "moment2", "best")}
    best = Best(leaves=parts["best"], **meta["best"]) if "best" in meta else None
    return OuterState(
        leaves=parts["leaves"],
        moments={name: (parts["moment1"][name], parts["moment2"][name]) for name in parts["leaves"]},
        best=best,
        **{name: meta[name] for name in ("step", "updates", "skipped_in_a_row", "clip_average", "method")},
    )
