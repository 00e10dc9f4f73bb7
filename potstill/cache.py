"""Cache of prepared tensors: on disk by a key, shared by runs with the same data and options."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from potstill import files
from potstill.errors import InputError
from potstill.progress import SILENT, Listener

KIND = "prepared"
DIGEST = 24
Enough = Callable[[Mapping[str, Tensor]], bool]
"""kept tensors -> whether they will do."""


def anything(tensors: Mapping[str, Tensor]) -> bool:
    """Return that any tensors will do."""
    return True


class Cache:
    """A folder of tensors by key; several processes may share it.

    Args:
        folder: is made when something is kept; None keeps nothing on disk.
        base: plain data that belong to every key: the identity of the data, the method, its
            options.
        listener: is told of what takes long to make.
    """

    def __init__(self, folder: Path | None, base: Any = None, listener: Listener = SILENT):
        self.folder, self.base, self.listener = folder, base, listener
        self.known: dict[str, Mapping[str, Tensor]] = {}

    def name_of(self, key: Any) -> tuple[str, str]:
        """Return the name of a key's file, and the text that it must hold."""
        text = files.canonical([self.base, key])
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST], text

    def holds(self, key: Any, enough: Enough = anything) -> bool:
        """Return whether the tensors of a key are kept, see `get`."""
        name, text = self.name_of(key)
        if name in self.known or not self.folder:
            return name in self.known and enough(self.known[name])
        kept = self.read(self.folder / f"{name}.safetensors", text)
        return kept is not None and enough(kept)

    def get(
        self,
        key: Any,
        build: Callable[[], Mapping[str, Tensor]],
        *,
        enough: Enough = anything,
        hold: bool = True,
    ) -> Mapping[str, Tensor]:
        """Return the tensors of a key; build them if they are not kept yet.

        They are built once over all processes, and kept only when complete.

        Args:
            key: plain data that, with `base`, decide the tensors; a name of them comes first.
            build: computes the tensors, on any device.
            enough: whether tensors that are kept will do; if not, they are built anew.
            hold: keep them in memory, too.
        Returns:
            The tensors on the CPU.
        Raises:
            InputError: the folder cannot be written.
        """
        name, text = self.name_of(key)
        if name in self.known and enough(self.known[name]):
            return self.known[name]
        tensors = self.on_disk(name, text, build, enough) if self.folder else made(build)
        if hold:
            self.known[name] = tensors
        return tensors

    def read(self, path: Path, text: str) -> Mapping[str, Tensor] | None:
        """Read the tensors of a file; None if it is missing, damaged or another's."""
        try:
            tensors, meta = files.load_tensors(path, KIND)
        except InputError:
            return None
        return tensors if meta.get("key") == text else None

    def on_disk(
        self, name: str, text: str, build: Callable[[], Mapping[str, Tensor]], enough: Enough
    ) -> Mapping[str, Tensor]:
        """Read a file of the folder, or build and write it, with the key's lock held."""
        assert self.folder
        path = self.folder / f"{name}.safetensors"
        kept = self.read(path, text)  # without the lock: a file is put there whole
        if kept is not None and enough(kept):
            return kept
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / f"{name}.lock").acquire()
        except OSError as error:
            raise InputError(
                f"cannot write the cache folder {self.folder}: {error.strerror}; give another with "
                "--cache-dir"
            ) from error
        with lock:
            kept = self.read(path, text)
            if kept is not None and enough(kept):
                return kept
            tensors = made(build)
            files.save_tensors(path, tensors, KIND, {"key": text})
            return tensors


def made(build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Build the tensors and move them to the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in build().items()}
