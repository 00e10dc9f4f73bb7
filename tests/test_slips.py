"""Everyday slips in Python: each is one sentence."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import potstill
from potstill.errors import InputError

QUICK: dict[str, Any] = {
    "model": "mlp",
    "width": 8,
    "depth": 1,
    "steps": 2,
    "unroll": 3,
    "window": 1,
    "real_batch": 20,
    "lengths": (2,),
    "validation_nets": 1,
    "compile": "off",
    "threads": 1,
    "device": "cpu",
}
X = np.random.default_rng(0).random((60, 8, 8), np.float32)
Y = np.arange(60) % 3


@pytest.fixture(scope="module")
def made() -> potstill.DistilledSet:
    """A set of digits."""
    return potstill.distill(**QUICK)


def distil(*data: Any, **options: Any) -> Callable[..., Any]:
    """A run with these arguments."""
    return lambda _: potstill.distill(*data, **{**QUICK, **options})


def measure(**options: Any) -> Callable[..., Any]:
    """An evaluation with these options."""
    known = {"nets": 1, "compile": "off", "device": "cpu", "data": "digits", **options}
    return lambda made: potstill.evaluate(made, **known)


def own(model: Any) -> Callable[..., Any]:
    """A run with a model that is given as it is."""
    known = {name: value for name, value in QUICK.items() if name not in ("width", "depth")}
    return lambda _: potstill.distill(**{**known, "model": model})


SLIPS: dict[str, Callable[..., Any]] = {
    "evaluate a path of nothing": lambda _: potstill.evaluate("no/such/run"),
    "evaluate None": lambda _: potstill.evaluate(None),
    "evaluate a number": lambda _: potstill.evaluate(5),
    **{f"nets {value!r}": measure(nets=value) for value in (1.5, True, "x", 0)},
    **{
        f"evaluate {name} {value!r}": measure(**{name: value})
        for name, value in {
            "compile": "maybe", "seed": "x", "lr": "x", "protocol": 5, "baselines": ("evil",),
        }.items()
    },
    "train steps text": lambda made: potstill.train(made, steps="x"),
    "train steps float": lambda made: potstill.train(made, steps=1.5),
    "train seed text": lambda made: potstill.train(made, seed="x"),
    "train a path": lambda _: potstill.train("set.safetensors"),
    "diagnose samples text": lambda _: potstill.diagnose("no/such", samples="x"),
    **{
        f"class_names {value!r}": distil(X, Y, class_names=value)
        for value in (5, [["a"], ["b"], ["c"]], [1, "1", 2], ["a", "a", "b"], "abc")
    },
    **{f"preset {value!r}": distil(preset=value) for value in (5, "", "evil")},
    **{f"save to {value!r:.20}": (lambda made, value=value: potstill.save(made, value))
        for value in ("a\0b", 5, None, "/tmp/" + "a" * 300, "/dev/null")},
    "save nothing": lambda _: potstill.save(None, "x"),
    **{f"load {value!r}": (lambda _, value=value: potstill.load(value))
        for value in ("a\0b", None, 5, "/tmp")},
    "export nothing": lambda _: potstill.export(None, "npz", "x"),
    "export to NUL": lambda made: potstill.export(made, "npz", "a\0b.npz"),
    "export as evil": lambda made: potstill.export(made, "evil", "x"),
    "out NUL": distil(out="a\0b"),
    "resume nothing": lambda _: potstill.resume("no/such"),
    "resume None": lambda _: potstill.resume(None),
    "finish nothing": lambda _: potstill.finish("no/such"),
    "sparse": distil(torch.as_tensor(X).to_sparse(), Y),
    "meta": distil(torch.empty(60, 8, 8, device="meta"), Y),
    "masked": distil(np.ma.masked_array(X, mask=X > 0.5), Y),
    "complex": distil(X.astype("complex64"), Y),
    "objects": distil(X.astype(object), Y),
    "NaN": distil(np.where(X > 0.99, np.nan, X), Y),
    "infinite": distil(np.where(X > 0.99, np.inf, X), Y),
    "labels too few": distil(X, Y[:5]),
    "labels missing": distil(X),
    "labels between": distil(X, Y + 0.5),
    "weights text": distil(X, Y, weights="x"),
    "weights too few": distil(X, Y, weights=[1, 2]),
    "weights negative": distil(X, Y, weights=-np.ones(60)),
    "test images alone": distil(test_images=X, test_labels=Y),
    **{
        f"preprocess {name}": (lambda made, value=value: made.preprocess(value))
        for name, value in {
            "text": "x", "None": None, "ragged": [[1], [1, 2]], "300": np.full((2, 8, 8), 300),
            "-1": np.full((2, 8, 8), -1), "NaN": np.full((2, 8, 8), np.nan),
            "4 x 4": np.zeros((2, 4, 4)),
        }.items()
    },
    **{
        f"{name} {value!r}": distil(**{name: value})
        for name, value in {
            "ipc": "x", "steps": True, "threads": 0, "seed": "x", "evil": 1, "outer_lr": -1,
            "listener": 5, "data": 5,
        }.items()
    },
    "ipc 1.5": distil(ipc=1.5),
    "model 5": own(5),
    "a network that exists": own(torch.nn.Linear(1, 1)),
    "a factory that exits": own(lambda num_classes: sys.exit(0)),
    "a prefix": lambda made: made.prefix(7),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_sentence(name, made):
    with pytest.raises(InputError) as caught:
        SLIPS[name](made)
    assert "\n" not in str(caught.value)
