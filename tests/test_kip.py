"""KIP, and the regressions that measure sets."""

import dataclasses

import numpy as np
import pytest
import torch
from test_unrolled import problem
from torch import Tensor

import potstill
from potstill.cli.parser import main
from potstill.distillation.outer import Interrupted
from potstill.distilled.recipes import Recipe
from potstill.engine.kernels import FullyConnected, kernel
from potstill.engine.ridge import centred, coefficients
from potstill.errors import InputError
from potstill.evaluation.learners import KernelRidge, Linear, TrainingSet
from potstill.methods.base import Examples
from potstill.methods.kip import Kip, KipOptions
from potstill.progress import Listener
from potstill.seeds import generator

CPU = torch.device("cpu")
SMALL = {
    "data": "digits", "method": "kip", "real_batch": 200, "steps": 12, "validate_every": 6,
    "checkpoint_every": 4, "threads": 1, "device": "cpu", "model": "mlp", "width": 16, "depth": 1,
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_coefficients_are_those_of_a_direct_solve():
    rows, targets = normal(6, 20), normal(6, 3, seed=1)
    gram = (rows @ rows.T).requires_grad_()
    found = coefficients(gram, targets, 0.1)
    matrix = gram + 0.1 * gram.trace() / 6 * torch.eye(6, dtype=gram.dtype)
    torch.testing.assert_close(found, torch.linalg.inv(matrix) @ targets, rtol=1e-11, atol=1e-13)
    symmetric = lambda one: coefficients((one + one.T) / 2, targets, 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, gram)


@pytest.mark.parametrize("gram", [torch.zeros(3, 3), torch.full((3, 3), torch.nan), -torch.eye(3)])
def test_what_cannot_be_solved_is_nan(gram):
    assert coefficients(gram, torch.ones(3, 2), 1e-6).isnan().all()


def drawn_examples(learn: bool, frozen: int = 0) -> tuple[Kip, Examples]:
    task = problem()
    labels = task.labels
    images = normal(len(labels), 1, 8, 8, seed=3)
    targets = torch.nn.functional.one_hot(labels, 3).double() + 0.1 * normal(len(labels), 3)
    method = Kip(task, KipOptions(kernel_depth=2, ridge=1e-3))
    return method, Examples(images, targets, labels, frozen, learn)


@pytest.mark.parametrize("learn", [False, True])
def test_the_gradient_is_how_the_loss_changes(learn):
    method, examples = drawn_examples(learn)
    found = method.estimate(examples, {}, {}, 0)
    assert set(found.grads) == ({"images", "targets"} if learn else {"images"})
    for name, grad in found.grads.items():
        along = 1e-5 * normal(*grad.shape, seed=4)
        up, down = (
            method.estimate(
                dataclasses.replace(examples, **{name: getattr(examples, name) + sign * along}),
                {}, {}, 0,
            ).loss
            for sign in (1, -1)
        )  # fmt: skip
        assert float((grad * along).sum()) == pytest.approx(float(up - down) / 2, rel=1e-6)


def test_the_loss_is_that_of_the_paper():
    """Written out: the kernel's entries one by one, an inverse, all real examples of the batch."""
    method, examples = drawn_examples(learn=True)
    task = method.problem
    rows = task.real.sampler.draw(task.real.train, task.real.batch, task.rng("real batch", 0))
    seen, labels = task.real.train.take(rows)
    network = FullyConnected(2)

    def entry(one: Tensor, other: Tensor) -> float:
        return float(kernel(network, one[None], other[None]).ntk)

    gram = np.array([[entry(a, b) for b in examples.images] for a in examples.images])
    across = np.array([[entry(a.double(), b) for b in examples.images] for a in seen])
    n = len(gram)
    known = np.linalg.inv(gram + 1e-3 * np.trace(gram) / n * np.eye(n))
    told = across @ known @ (examples.targets.numpy() - 1 / 3)
    wanted = np.eye(3)[labels.numpy()] - 1 / 3
    expected = 0.5 * np.mean((wanted - told) ** 2)
    assert float(method.estimate(examples, {}, {}, 0).loss) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("learn_labels", [False, True])
def test_kip_learns_digits_and_its_set_says_by_what_it_is_measured(learn_labels, tmp_path):
    out = tmp_path / "run"
    few, more = (
        potstill.distill(
            **{**SMALL, "steps": steps, "real_batch": 1000, "learn_labels": learn_labels},
            out=out, overwrite=True,
        )
        for steps in (1, 40)
    )  # fmt: skip
    assert more.meta["accuracy"]["mean"] > few.meta["accuracy"]["mean"] + 0.05
    assert more.meta["accuracy"]["mean"] > 0.88
    recipe = potstill.load(out).recipe
    assert (recipe.learner, recipe.kernel, recipe.kernel_depth, recipe.ridge) == (
        "krr", "fc", 1, 1e-6,
    )  # fmt: skip
    assert bool((more.targets < 0).any()) == learn_labels
    rows = {
        learner: potstill.evaluate(out, learner=learner, nets=2, steps="auto")[0]
        for learner in ("auto", "linear", "network-mse", "network", "nearest")
    }
    assert rows["auto"].accuracy.n == 1
    assert "kernel ridge regression" in rows["auto"].protocol
    assert rows["auto"].accuracy.mean > 0.85
    assert rows["network-mse"].accuracy.mean > 0.6
    assert rows["network"].accuracy.mean > 0.6


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    options = {**SMALL, "learn_labels": True}
    whole = potstill.distill(**options)
    seen: list[int] = []
    listener = Listener(step=lambda *_: seen.append(1), stop=lambda: len(seen) >= 5)
    with pytest.raises(Interrupted):
        potstill.distill(**options, out=tmp_path / "run", listener=listener)
    again = potstill.resume(tmp_path / "run")
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.targets, whole.targets)


def test_kernel_regression_interpolates_and_says_what_it_cannot_do():
    images, labels = normal(12, 1, 4, 4).float(), torch.arange(12) % 3
    targets = torch.nn.functional.one_hot(labels, 3).float()
    learner = KernelRidge.of(Recipe(ridge=1e-9), lambda: torch.nn.Linear(1, 1), CPU)
    told = learner.fit(TrainingSet(images, targets, labels), 0)(images)
    torch.testing.assert_close(told, centred(targets), rtol=0, atol=1e-4)
    twice = TrainingSet(torch.cat([images, images]), targets.repeat(2, 1), labels.repeat(2))
    with pytest.raises(InputError, match="singular or not finite with a ridge of 0"):
        KernelRidge(FullyConnected(), 0.0, CPU).fit(twice, 0)
    many = torch.zeros(20_001, 1, 1, 1)
    with pytest.raises(InputError, match="needs a matrix of 3 GB, and is done on at most 20,000"):
        learner.fit(TrainingSet(many, many[:, :, 0, 0], torch.zeros(20_001)), 0)


def test_linear_regression_is_the_same_by_either_matrix():
    images, others = normal(30, 1, 2, 3, seed=1), normal(5, 1, 2, 3, seed=2)
    labels = torch.arange(30) % 3
    targets = torch.nn.functional.one_hot(labels, 3).double()
    wide = torch.cat([images, images.new_zeros(30, 1, 2, 30)], 3)  # more values than examples
    answers = [
        Linear(0.0 if some is images else 1e-12, CPU).fit(TrainingSet(some, targets, labels), 0)(
            torch.nn.functional.pad(others, (0, some.shape[3] - 3))
        )
        for some in (images, wide)
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-3)
    design = np.hstack([images.flatten(1).numpy(), np.ones((30, 1))])
    expected = (
        np.hstack([others.flatten(1).numpy(), np.ones((5, 1))])
        @ np.linalg.lstsq(design, targets.numpy() - 1 / 3, rcond=None)[0]
    )
    np.testing.assert_allclose(answers[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "conv"}, "unknown kernel 'conv' .did you mean 'convnet'"),
        ({"kernel": "convnet", "kernel_depth": 4}, "needs images of at least 16 x 16 pixels"),
        ({"ridge": 0}, "ridge must be above 0, got 0"),
        ({"kernel": "convnet", "data": "sklearn:wine"}, "pixels, got rows; use --kernel fc"),
    ],
)
def test_bad_options_are_one_sentence(options, message, capsys):
    with pytest.raises(InputError, match=message):
        potstill.distill(**{**SMALL, **options})
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, **options}.items()]
    assert main(["distill", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2
