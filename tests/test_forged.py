"""Sets that somebody made up, with a checksum that fits: each is one sentence and no figure."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_bytes
from test_runs import QUICK

import potstill
from potstill.cli.parser import main
from potstill.errors import InputError
from potstill.files import FORMAT_VERSION, KEY, canonical, checksum, load_tensors

Forgery = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata of a set of our own."""
    out = tmp_path_factory.mktemp("good") / "run"
    potstill.distill(**QUICK, preprocess="zca", device="cpu", out=out)
    return load_tensors(out / "distilled.safetensors", "distilled set")


def meta(**changes: Any) -> Forgery:
    """Change metadata; None removes."""

    def forge(tensors, known):
        for name, value in changes.items():
            if value is None:
                del known[name]
            elif isinstance(value, dict) and isinstance(known.get(name), dict):
                known[name] |= value
            else:
                known[name] = value

    return forge


def recipe(**changes: Any) -> Forgery:
    """Change the recipe."""
    return meta(recipe=changes)


def block(**changes: Any) -> Forgery:
    """Change the description of the block."""

    def forge(tensors, known):
        known["blocks"][0] |= changes

    return forge


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Forgery:
    """Change a tensor; None removes it."""

    def forge(tensors, known):
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors.get(name, torch.zeros(1))).contiguous()

    return forge


def at_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Set the first number of a tensor."""

    def change(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new.view(-1)[0] = value
        return new

    return change


IMAGES, MATRIX, TARGETS = "blocks.0.images", "preprocess.matrix", "blocks.0.targets"
FORGERIES: dict[str, Forgery] = {
    **{f"no {name}": meta(**{name: None}) for name in (
        "blocks", "class_names", "input_shape", "learned_labels", "preprocess", "recipe")},
    "recipe is text": meta(recipe="convnet"),
    "recipe is empty": lambda tensors, known: known.update(recipe={}),
    "recipe with another key": recipe(evil=1),
    "norm is unknown": recipe(norm="evil"),
    "network_init is unknown": recipe(network_init="evil"),
    "lr is text": recipe(lr="0.1"),
    "lr is 0": recipe(lr=0),
    "lr is negative": recipe(lr=-0.1),
    "steps is text": recipe(steps="many"),
    "steps is -1": recipe(steps=-1),
    "steps is 0": recipe(steps=0),
    "steps is a float": recipe(steps=1.5),
    "steps is true": recipe(steps=True),
    "width is 2,000,000": recipe(width=2_000_000),
    "width is 0": recipe(width=0),
    "depth is deep": recipe(depth=10**6),
    "depth is a list": recipe(depth=[1]),
    "model is unknown": recipe(model="evil"),
    "model is a number": recipe(model=3),
    "learner is unknown": recipe(learner="evil"),
    "optimizer is text": recipe(optimizer="adam"),
    "optimizer is unknown": recipe(optimizer={"name": "evil"}),
    "optimizer without a name": recipe(optimizer={"beta1": 0.9}),
    "optimizer with another key": recipe(optimizer={"name": "adam", "evil": 1}),
    "optimizer with an option of text": recipe(optimizer={"name": "adam", "beta1": "x"}),
    "precision is unknown": recipe(precision="evil"),
    "batch_per_class is 0": recipe(batch_per_class=0),
    "classes_per_batch is 0": recipe(classes_per_batch=0),
    "classes_per_batch is above": recipe(classes_per_batch=99),
    "batch_size is 0": recipe(batch_size=0),
    "augment is unknown": recipe(augment=["evil"]),
    "augment is text": recipe(augment="flip"),
    "augment holds a list": recipe(augment=[["flip"]]),
    "blocks is 5": meta(blocks=5),
    "blocks is empty": meta(blocks=[]),
    "blocks holds text": meta(blocks=["pixels"]),
    "more blocks than tensors": lambda tensors, known: known["blocks"].append(known["blocks"][0]),
    "kind is unknown": block(kind="evil"),
    "kind is missing": lambda tensors, known: known["blocks"][0].pop("kind"),
    "kind is a list": block(kind=["pixels"]),
    "kind of another parameterisation": block(kind="basis"),
    "block with another key": block(evil=1),
    "ipc is text": block(ipc="2"),
    "ipc is 0": block(ipc=0),
    "ipc is 1,000,000,000": block(ipc=10**9),
    "ipc is -1": block(ipc=-1),
    "ipc is 1": block(ipc=1),
    "class_names is text": meta(class_names="0123456789"),
    "class_names is empty": meta(class_names=[]),
    "class_names holds numbers": meta(class_names=list(range(10))),
    "class_names is one too few": meta(class_names=list("012345678")),
    "input_shape of 2": meta(input_shape=[8, 8]),
    "input_shape of another size": meta(input_shape=[1, 8, 9]),
    "input_shape with 0": meta(input_shape=[1, 0, 8]),
    "input_shape of text": meta(input_shape=["1", "8", "8"]),
    "input_shape is huge": meta(input_shape=[1, 10**6, 10**6]),
    "learned_labels is text": meta(learned_labels="yes"),
    "learned_labels without any": tensor(TARGETS, None),
    "not learned, but there": meta(learned_labels=False),
    "preprocess is unknown": meta(preprocess="evil"),
    "preprocess is a list": meta(preprocess=["zca"]),
    "preprocess is another": meta(preprocess="normalize"),
    "without_preprocessing with some": meta(without_preprocessing=True),
    "config is text": meta(config="x"),
    "config is a list": meta(config=["x"]),
    "data is text": meta(data="x"),
    "data without a fingerprint": meta(data={"fingerprint": 3}),
    "accuracy is text": meta(accuracy="90 %"),
    "budgets is a number": meta(budgets=3),
    "budgets of text": meta(budgets=["x"]),
    "seed is text": meta(seed="x"),
    "another key": meta(evil=1),
    "images missing": tensor(IMAGES, None),
    "images NaN": tensor(IMAGES, at_first(math.nan)),
    "images infinite": tensor(IMAGES, at_first(math.inf)),
    "images flat": tensor(IMAGES, lambda old: old.view(-1)),
    "images too few": tensor(IMAGES, lambda old: old[:7]),
    "images whole numbers": tensor(IMAGES, lambda old: old.int()),
    "images bool": tensor(IMAGES, lambda old: old > 0),
    "images float64": tensor(IMAGES, lambda old: old.double()),
    "images none": tensor(IMAGES, lambda old: old[:0]),
    "targets negative": tensor(TARGETS, at_first(-1)),
    "targets NaN": tensor(TARGETS, at_first(math.nan)),
    "targets of fewer classes": tensor(TARGETS, lambda old: old[:, :3]),
    "a tensor of nothing": tensor("evil", lambda old: old),
    "labels of version 1": tensor("blocks.0.labels", lambda old: old),
    "matrix NaN": tensor(MATRIX, at_first(math.nan)),
    "matrix of 1": tensor(MATRIX, lambda old: old[:1]),
    "matrix square": tensor(MATRIX, lambda old: torch.eye(64)),
    "matrix whole numbers": tensor(MATRIX, lambda old: old.int()),
    "matrix missing": tensor(MATRIX, None),
    "typical missing": tensor("preprocess.typical", None),
    "typical of 5": tensor("preprocess.typical", lambda old: torch.ones(5)),
}  # fmt: skip


def write(path: Path, tensors: dict[str, torch.Tensor], known: dict[str, Any]) -> Path:
    """Write a file with a checksum that fits, whatever is in it."""
    body = {"format_version": FORMAT_VERSION, "kind": "distilled set", **known}
    header = {**body, "sha256": checksum(tensors, body)}
    path.write_bytes(to_bytes(tensors, {KEY: canonical(header)}))
    return path


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_set_is_one_sentence(name, good, tmp_path, capsys):
    tensors, known = dict(good[0]), copy.deepcopy(good[1])
    known = {key: value for key, value in known.items() if key not in ("format_version", "kind")}
    write(tmp_path / "good.safetensors", tensors, known)
    potstill.load(tmp_path / "good.safetensors")
    FORGERIES[name](tensors, known)
    path = write(tmp_path / "set.safetensors", tensors, known)
    with pytest.raises(InputError) as caught:
        potstill.load(path)
    assert "\n" not in str(caught.value)
    assert main(["export", str(path), "--format", "npz", "--out", str(tmp_path / "x.npz")]) == 2
    assert capsys.readouterr().err.count("potstill: error: ") == 1
    assert not (tmp_path / "x.npz").exists()


def deep(levels: int) -> str:
    """JSON that is nested so deep."""
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "header",
    [
        '{"evil":' + deep(100_000) + "}",
        '{"evil":' + "9" * 5001 + "}",
        "[]",
        "3",
        "null",
        "{",
        "",
        '{"format_version":"2"}',
        '{"format_version":2}',
        '{"format_version":99,"kind":"distilled set"}',
        '{"format_version":2,"kind":"distilled set","x":NaN}',
        '{"format_version":2,"kind":"checkpoint"}',
        '{"format_version":true,"kind":"distilled set"}',
    ],
    ids=range(13),
)
def test_a_forged_header_is_one_sentence(header, tmp_path):
    path = tmp_path / "set.safetensors"
    path.write_bytes(to_bytes({"x": torch.zeros(1)}, {KEY: header}))
    with pytest.raises(InputError) as caught:
        potstill.load(path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b"{" * 100,
        b"PK\x03\x04" + b"x" * 100,
        b"\x80\x04\x95.",
        json.dumps({"a": 1}).encode(),
    ],
    ids=range(8),
)
def test_what_is_no_safetensors_file_is_one_sentence(content, tmp_path):
    path = tmp_path / "set.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no safetensors file"):
        potstill.load(path)
