"""Files of tensors with one canonical metadata key, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from potstill.errors import InputError, first_line

KEY = "potstill"
FORMAT_VERSION = 2


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Return a hash over the tensors' names, types, shapes and values and the metadata."""
    total = hashlib.sha256(canonical(meta).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def place(name: str, given: Any) -> Path:
    """Return a path that a caller gave; raise an InputError if it is none.

    Args:
        name: of the argument, for the message.
        given: the path.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{name} must be a path, got {given!r:.80}")
    if "\0" in os.fspath(given):
        raise InputError(f"{name} must be a path without a NUL character, got {given!r}")
    return Path(given)


def make_folder(path: Path, way_out: str) -> None:
    """Make a folder, and those it is in; one that is there is left alone.

    Args:
        path: the folder.
        way_out: what the user can do if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; {way_out}") from error


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all.

    The old content stays until the new content is safe on disk.

    Raises:
        InputError: no space, no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp") if path.name else path
    try:
        if not path.name or (path.exists() and not path.is_file()):
            raise InputError(f"cannot write {path}: it must name a file, not a folder or a device")
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        settle(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; what was there is unchanged"
        ) from error
    finally:
        with suppress(OSError):  # it would hide the sentence above
            temporary.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Have the system keep a folder's new names over a loss of power, where it can."""
    with suppress(OSError):  # Windows opens no folders, and some file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], kind: str, meta: Mapping[str, Any]
) -> None:
    """Write tensors and metadata, with a checksum over both, as one safetensors file.

    Args:
        path: the file.
        tensors: name -> tensor, on any device.
        kind: what the file holds; `load_tensors` asks for the same.
        meta: plain data that JSON can hold.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = {"format_version": FORMAT_VERSION, "kind": kind, **meta}
    header = {**body, "sha256": checksum(kept, body)}
    write(path, to_bytes(kept, {KEY: canonical(header)}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and metadata that `save_tensors` wrote.

    Raises:
        InputError: the file is missing, damaged, foreign, of another kind, or of a newer format
            version.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path, or distill first")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(KEY)
            if header is None:
                raise InputError(
                    f"{path} is a safetensors file, but potstill did not write it: it has no "
                    f"{KEY!r} metadata"
                )
            # Cloned: a tensor of the file begins anywhere, and some kernels round otherwise where
            # memory is not aligned, so that a resumed run would part from an undisturbed one.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        meta = json.loads(header)
    except InputError:  # it is a ValueError, too
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or no safetensors file: {first_line(error)}; take another copy of "
            "it"
        ) from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(version, int):
        raise InputError(
            f"{path} is damaged: its metadata tell no format version; take another copy of it"
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this potstill reads up to {FORMAT_VERSION}; "
            "upgrade potstill"
        )
    if meta.get("kind") != kind:
        raise InputError(f"{path} must hold a {kind}, it holds a {meta.get('kind')}")
    try:
        whole = meta.pop("sha256", None) == checksum(tensors, meta)
    except (ValueError, RecursionError):  # no finite numbers, or too deep
        whole = False
    if not whole:
        raise InputError(
            f"{path} is damaged: its checksum does not fit its content; take another copy of it"
        )
    return tensors, meta


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without the prefix."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
