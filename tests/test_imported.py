"""Sets of others, from files of tensors."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import potstill
from potstill.cli.parser import main
from potstill.data.tensors import read_tensors
from potstill.errors import InputError
from potstill.methods.imported import by_class

IMAGES = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10).repeat(2)
OPTIONS = {
    "data": "digits", "method": "imported", "model": "mlp", "width": 8, "ipc": 2, "lengths": (5,),
    "validation_nets": 1, "preprocess": "normalize", "progress": False,
}  # fmt: skip


def dc(path):
    """As the code of DC and DM saves it: one pair for each experiment."""
    first = [torch.zeros(20, 1, 8, 8), LABELS]
    torch.save({"data": [first, [IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [0.5]}}, path)


def save_safetensors(path):
    save_file({"images": IMAGES, "labels": LABELS}, path)


def save_npz(path):
    np.savez(path, x_syn=IMAGES.permute(0, 2, 3, 1).numpy(), y_syn=LABELS.numpy())


WRITERS = {
    "pair.pt": lambda path: torch.save((IMAGES.clone().requires_grad_(), LABELS), path),
    "names.pth": lambda path: torch.save({"image_syn": IMAGES, "label_syn": LABELS}, path),
    "res_DC.pt": dc,
    "set.safetensors": save_safetensors,
    "channels-last.npz": save_npz,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_set_class_by_class(tmp_path, name):
    WRITERS[name](tmp_path / name)
    made = potstill.distill(**OPTIONS, set_images=str(tmp_path / name))
    assert torch.equal(made.images, IMAGES[LABELS.argsort(stable=True)])
    assert made.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert made.meta["config"]["method"]["set_images"] == name, "no folder of this machine"


def test_what_is_exported_as_tensors_comes_back_to_the_bit(tmp_path, capsys):
    for name, labels in (("images", IMAGES), ("labels", LABELS)):
        torch.save(labels, tmp_path / f"{name}.pt")
    files = {f"set_{name}": str(tmp_path / f"{name}.pt") for name in ("images", "labels")}
    potstill.distill(**OPTIONS, **files, out=tmp_path / "run")
    out = tmp_path / "there"
    assert main(["export", str(tmp_path / "run"), "--format", "tensors", "--out", str(out)]) == 0
    assert "exact" in capsys.readouterr().out
    files = {f"set_{name}": str(out / f"{name}.pt") for name in ("images", "labels")}
    again, made = potstill.distill(**OPTIONS, **files), potstill.load(tmp_path / "run")
    assert torch.equal(again.images, made.images)
    rows = potstill.evaluate(tmp_path / "run", nets=2, protocol="paper", progress=False)
    assert rows[0].protocol.startswith("paper")


def test_soft_labels_are_kept(tmp_path):
    weights = torch.rand(20, 10, generator=torch.Generator().manual_seed(1))
    weights[torch.arange(20), LABELS] = 2.0
    torch.save([IMAGES, weights], tmp_path / "soft.pt")
    given = {**OPTIONS, "set_images": str(tmp_path / "soft.pt")}
    with pytest.raises(InputError, match="--learn-labels"):
        potstill.distill(**given)
    made = potstill.distill(**given, learn_labels=True)
    order = LABELS.argsort(stable=True)
    assert torch.equal(made.targets, weights[order])
    assert torch.equal(made.images, IMAGES[order])


def test_hard_labels_are_kept_where_labels_can_be_learned(tmp_path):
    torch.save([IMAGES, LABELS], tmp_path / "hard.pt")
    made = potstill.distill(**OPTIONS, set_images=str(tmp_path / "hard.pt"), learn_labels=True)
    assert torch.equal(made.targets.argmax(1), made.labels)


def test_weights_that_lean_elsewhere_stay_in_their_order():
    weights = torch.rand(6, 3)
    weights[:, 0] += 1
    order, kept = by_class(weights, 6, 3)
    assert order.tolist() == list(range(6))
    assert torch.equal(kept, weights)
    assert by_class(torch.eye(3)[[2, 1, 0]], 3, 3)[1] is None, "one-hot weights are classes"


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"images": IMAGES, "net": Evil()}, "evil.pt")
    with pytest.raises(InputError, match="would run code"):
        read_tensors(Path("evil.pt"))
    Path("evil2.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError):
        read_tensors(Path("evil2.pt"))
    np.savez("evil.npz", images=np.array([Evil()], dtype=object))
    with pytest.raises(InputError):
        read_tensors(Path("evil.npz"))
    assert not Path("was-run").exists()


def made(images, labels=LABELS):
    return [images.detach(), labels]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (made(IMAGES[:10], LABELS[:10]), "give --ipc 1"),
        (made(IMAGES, LABELS[:19]), "a label for each of the 20"),
        (made(IMAGES, LABELS + 1), "classes 0 to 9, got 1 to 10"),
        (made(IMAGES, torch.zeros(20)), "equally many examples of each class"),
        (made(IMAGES, torch.rand(20, 7)), "weights of the 10 classes"),
        (made(IMAGES, -torch.rand(20, 10)), "softmax"),
        (made(IMAGES, LABELS + 0.5), "whole numbers of classes"),
        (made(IMAGES[:, :, :4]), r"examples of shape \(1, 8, 8\)"),
        (made(IMAGES / 0), "finite"),
        (made((IMAGES * 9).to(torch.uint8)), "values as networks read them"),
        ({"weights": "none"}, "it holds a dictionary of weights"),
        ("nothing", "it holds a str"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(tmp_path, held, said):
    torch.save(held, tmp_path / "set.pt")
    with pytest.raises(InputError, match=said):
        potstill.distill(**OPTIONS, set_images=str(tmp_path / "set.pt"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("set.pt", b"junk", "damaged or no .pt file"),
        ("set.npz", b"junk", "damaged or no .npz file"),
        ("set.safetensors", b"junk", "damaged or no .safetensors file"),
        ("set.mat", b"", "must end in one of"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_tensors(tmp_path / name)
    with pytest.raises(InputError, match=f"did you mean '{name}'"):
        read_tensors(tmp_path / f"the-{name}")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; give a file of tensors in it"):
        read_tensors(tmp_path)


def test_no_examples_are_no_advice(capsys, tmp_path):
    torch.save(torch.zeros(0, 1, 8, 8), tmp_path / "none.pt")
    words = ["--data", "digits", "--set-images", str(tmp_path / "none.pt")]
    assert main(["distill", "--method", "imported", *words, "--out", str(tmp_path / "run")]) == 2
    assert "holds 0; take another file" in capsys.readouterr().err


def test_an_import_needs_a_file(capsys, tmp_path):
    assert main(["distill", "--method", "imported", "--out", str(tmp_path / "run")]) == 2
    assert "give it with --set-images" in capsys.readouterr().err
