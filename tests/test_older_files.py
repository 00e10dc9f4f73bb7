"""Files and runs from before parameterisations: format version 1."""

import pytest
import torch
from test_runs import QUICK, interrupted_run

import potstill
from potstill import store
from potstill.cli import main


def as_before(path, monkeypatch, kind: str, change) -> None:
    """Rewrite a file as version 1, with its tensors and metadata changed."""
    tensors, meta = store.load_tensors(path, kind)
    body = {name: value for name, value in meta.items() if name not in ("kind", "format_version")}
    change(tensors, body)
    with monkeypatch.context() as patched:
        patched.setattr(store, "FORMAT_VERSION", 1)
        store.save_tensors(path, tensors, kind, body)


@pytest.mark.parametrize("learned", [False, True])
def test_a_set_is_read(learned, tmp_path, monkeypatch):
    made = potstill.distill(**{**QUICK, "steps": 1, "learn_labels": learned, "ipc": 2, "boost_blocks": 2})
    path, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    potstill.save(made, path)
    old.write_bytes(path.read_bytes())

    def change(tensors, meta):
        for number, block in enumerate(made.blocks):
            tensors |= {f"blocks.{number}.labels": block.labels, f"blocks.{number}.targets": block.targets}
        meta["blocks"] = ["pixels", "pixels"]

    as_before(old, monkeypatch, "distilled set", change)
    again = potstill.load(old)
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.targets, made.targets)
    assert (again.stored_bytes, again.budgets) == (made.stored_bytes, (1, 2))
    potstill.save(again, old)
    assert old.read_bytes() == path.read_bytes()


def test_a_run_is_shown_and_goes_on(tmp_path, monkeypatch):
    options = {**QUICK, "learn_labels": False, "ipc": 2, "boost_blocks": 2, "steps": 5}
    whole = potstill.distill(**options, out=tmp_path / "whole")
    interrupted_run(tmp_path / "cut", 7, **options)

    def change(tensors, meta):
        if meta["stage"] == 1:
            tensors["earlier.0.targets"] = torch.eye(10)
        for name in ("param", "factor", "bases", "hallucinators"):
            meta["config"].pop(name)

    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        as_before(path, monkeypatch, "checkpoint", change)
    preparation = tmp_path / "cut" / "preparation.safetensors"
    as_before(preparation, monkeypatch, "preparation", lambda tensors, meta: meta.pop("input_shape"))
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "page.html")]) == 0
    assert "As of the newest checkpoint" in (tmp_path / "page.html").read_text()
    gone_on = potstill.resume(tmp_path / "cut")
    assert torch.equal(gone_on.images, whole.images)
    assert gone_on.stored_bytes == whole.stored_bytes
