"""Cache of prepared tensors: on disk by a key, shared by runs with the same data and options."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from potstill import files
from potstill.errors import InputError

KIND = "prepared"
DIGEST = 24


class Cache:
    """A folder of tensors by key; several processes may share it.

    Args:
        folder: is made when something is kept; None keeps nothing on disk.
        base: plain data that belong to every key: the identity of the data, the method, its
            options.
    """

    def __init__(self, folder: Path | None, base: Any = None):
        self.folder, self.base = folder, base
        self.known: dict[str, Mapping[str, Tensor]] = {}

    def get(self, key: Any, build: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return the tensors of a key; build them if they are not kept yet.

        They are built once over all processes, and kept only when complete.

        Args:
            key: plain data that, with `base`, decide the tensors; a name of them comes first.
            build: computes the tensors, on any device.
        Returns:
            The tensors on the CPU.
        Raises:
            InputError: the folder cannot be written.
        """
        text = files.canonical([self.base, key])
        name = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
        if name not in self.known:
            self.known[name] = self.on_disk(name, text, build) if self.folder else made(build)
        return self.known[name]

    def on_disk(
        self, name: str, text: str, build: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Read a file of the folder, or build and write it, with the key's lock held."""
        assert self.folder
        path = self.folder / f"{name}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / f"{name}.lock").acquire()
        except OSError as error:
            raise InputError(
                f"cannot write the cache folder {self.folder}: {error.strerror}; give another with "
                "--cache-dir"
            ) from error
        with lock:
            try:
                tensors, meta = files.load_tensors(path, KIND)
            except InputError:  # not there yet, or damaged: it is made anew
                pass
            else:
                if meta.get("key") == text:
                    return tensors
            tensors = made(build)
            files.save_tensors(path, tensors, KIND, {"key": text})
            return tensors


def made(build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Build the tensors and move them to the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in build().items()}
