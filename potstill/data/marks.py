"""Marks of training examples, by which a set finds examples that it was distilled from again.

A set keeps the hashes of some training examples. If tests are made on examples that it was
distilled from, these are among them, in the proportion in which all training examples are.
"""

import base64
import hashlib

import numpy as np
import numpy.typing as npt
import torch

from potstill.data.splits import Arrays, chunks
from potstill.seeds import generator

MARKED = 256
"""So many training examples are marked: if a test split holds 2 % of them, one of them is among
those but for a chance of 1 in 170.
"""
MARK = np.dtype("<u8")


def marks(arrays: Arrays, rows: npt.NDArray[np.int64], seed: int) -> str:
    """Return the marks of some of the examples, drawn at random.

    Args:
        arrays: the examples.
        rows: (n,) the training examples among them.
        seed: of the draw.
    """
    order = torch.randperm(len(rows), generator=generator(seed, "marks"))[:MARKED]
    found = hashes(arrays, np.sort(rows[order.numpy()]))
    return base64.b64encode(found.tobytes()).decode()


def share_marked(known: str, arrays: Arrays, rows: npt.NDArray[np.int64]) -> float:
    """Return the share of the marked training examples that is among some examples.

    Args:
        known: the marks.
        arrays: the examples.
        rows: (n,) those among them to look at.
    """
    marked = np.frombuffer(base64.b64decode(known), MARK)
    return float(np.isin(marked, hashes(arrays, rows)).mean()) if len(marked) else 0.0


def hashes(arrays: Arrays, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return a hash of each example; the same for bytes and for floats of a 255th of them."""
    found = []
    for some in chunks(rows, arrays):
        values = arrays.floats(some).numpy()
        if values.ndim == 4:  # of a table, small differences count
            values = (values * 255).round().astype(np.int32)
        found += [hash_of(one.tobytes()) for one in values]
    return np.frombuffer(b"".join(found), MARK)


def hash_of(content: bytes) -> bytes:
    """Return the hash of an example."""
    return hashlib.blake2b(content, digest_size=MARK.itemsize).digest()
