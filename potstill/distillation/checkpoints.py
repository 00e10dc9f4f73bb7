"""Checkpoints: files of a run's state, of which the last are kept."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from potstill import files
from potstill.config.config import Resolved
from potstill.distillation.outer import OuterState
from potstill.distillation.packing import Described, pack, state_of
from potstill.errors import InputError
from potstill.records.plain import Unreadable

CONFIG, CHECKPOINTS = "config.toml", "checkpoints"
INTERRUPTED = "-interrupted"
"""Suffix of a checkpoint that was written at an interruption, not on schedule."""
CHECKPOINT = re.compile(rf"step-\d{{8}}(?:{INTERRUPTED})?\.safetensors")
"""The name of a checkpoint; others among them are not ours."""
MAY_CHANGE = (
    "data",
    "weights",
    "cache_dir",
    "storage",
    "device",
    "threads",
    "log",
    "steps",
    "time_budget",
    "checkpoint_every",
    "keep_checkpoints",
)
"""Options that a resumed run may have changed: paths of data and weights, hardware, logs,
length and checkpoints. (What the data and weights hold may not: see `RunFolder.require_data`.)"""


def identity(config: Resolved) -> dict[str, Any]:
    """Return the options that a checkpoint depends on, as plain data."""
    plain: dict[str, Any] = json.loads(files.canonical(config.flat()))
    nested = config.distilled.boost_blocks > 1  # there the first blocks' last steps are behind us
    return {
        name: value
        for name, value in plain.items()
        if name not in MAY_CHANGE or (nested and name == "steps")
    }


def steps_done(state: OuterState, config: Resolved) -> int:
    """Return the outer steps of the whole run up to a state, over all blocks."""
    return state.carried.stage * config.outer.steps + state.step


class Damaged(InputError):
    """A checkpoint that is incomplete or corrupt."""


class Checkpoints:
    """The checkpoints of a run on disk.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path):
        self.run = run

    @property
    def files(self) -> list[Path]:
        """The files of the kept checkpoints, in order."""
        found = (self.run / CHECKPOINTS).glob("step-*.safetensors")
        return sorted(path for path in found if CHECKPOINT.fullmatch(path.name))

    @property
    def newest_step(self) -> int:
        """Outer steps of the whole run up to the newest checkpoint; 0 without one."""
        return max(map(step_of, self.files), default=0)

    def save(self, state: OuterState, config: Resolved, fingerprint: str) -> None:
        """Write a checkpoint and drop those that are not to be kept.

        Where all checkpoints are kept, one written at an interruption is dropped once the run has
        gone on: an interruption must leave no trace in the run's course.
        """
        tensors, meta = pack(state)
        outer, folder = config.outer, self.run / CHECKPOINTS
        meta |= {"config": identity(config), "data": fingerprint}
        due = state.step % outer.checkpoint_every == 0 or state.step == outer.steps
        written = (
            folder / f"step-{steps_done(state, config):08d}{'' if due else INTERRUPTED}.safetensors"
        )
        try:
            files.save_tensors(written, tensors, "checkpoint", meta)
        except InputError as error:
            raise InputError(f"{error}; make room, then go on with --resume {self.run}") from error
        others = [path for path in self.files if path != written]
        kept = outer.keep_checkpoints
        for old in (
            others[: max(0, len(others) + 1 - kept)]
            if kept
            else [path for path in others if path.stem.endswith(INTERRUPTED)]
        ):
            old.unlink(missing_ok=True)

    def newest(
        self,
        config: Resolved,
        fingerprint: str,
        device: torch.device,
        say: Callable[[str], None],
        *,
        below: float = math.inf,
    ) -> OuterState | None:
        """Return the state of the newest complete checkpoint; None if there is no checkpoint yet.

        Args:
            config: the run's options.
            fingerprint: hash of the data.
            device: of the tensors.
            say: receives a sentence on each damaged checkpoint.
            below: checkpoints of this outer step and later ones are left out.
        Raises:
            InputError: all are damaged, or they were made with other data or other options.
        """
        known = [path for path in self.files if step_of(path) < below]
        for path in reversed(known):
            try:
                return self.state(path, config, fingerprint, device)
            except Damaged as error:
                say(f"{error}; trying the checkpoint before")
        if known:
            raise InputError(
                f"every checkpoint of the run in {self.run} is damaged; start it anew with "
                "--overwrite"
            )
        return None

    def states(
        self, config: Resolved, fingerprint: str, device: torch.device
    ) -> Iterator[OuterState]:
        """Yield the state of every kept checkpoint, in order.

        Raises:
            InputError: as for `newest`, and if one is damaged.
        """
        for path in self.files:
            yield self.state(path, config, fingerprint, device)

    def state(
        self, path: Path, config: Resolved, fingerprint: str, device: torch.device
    ) -> OuterState:
        """Read the state in a checkpoint.

        Args:
            path: the file.
            config: the run's options.
            fingerprint: hash of the data.
            device: of the tensors.
        Raises:
            Damaged: it is not whole.
            InputError: it was made with other data or other options.
        """
        try:
            tensors, meta = files.load_tensors(path, "checkpoint")
        except InputError as error:
            raise Damaged(str(error)) from error
        try:
            described = Described.of(meta)
            state = state_of({name: one.to(device) for name, one in tensors.items()}, described)
        except Unreadable as error:
            raise Damaged(f"{path} is damaged: {error}") from error
        if described.data != fingerprint:
            refuse_data(self.run)
        recorded, known = described.config, identity(config)
        for name in sorted({*recorded, *known}):
            before, now = recorded.get(name), known.get(name)
            if before != now:
                raise InputError(
                    f"{name} of the run in {self.run} was {before}, its {CONFIG} now says {now}; "
                    "put it back, or start a new run"
                )
        if state.step > config.outer.steps:
            raise InputError(
                f"steps must be at least the {state.step} done by the run in {self.run}, got "
                f"{config.outer.steps}"
            )
        return state

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        for path in self.files:
            if step_of(path) > step:
                path.unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """Return the outer step of the whole run that a checkpoint's name tells."""
    return int(checkpoint.stem.split("-")[1])


def refuse_data(run: Path) -> NoReturn:
    """Raise the InputError for other data."""
    raise InputError(
        f"the run in {run} was started with other data or weights; give it those again "
        "(arrays, of weights as well, in Python to potstill.resume)"
    )
