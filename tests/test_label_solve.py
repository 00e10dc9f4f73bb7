"""KIP's label solve, and the least squares behind it."""

import dataclasses

import numpy as np
import pytest
import torch
from test_kip import normal
from test_unrolled import problem

import potstill
from potstill.cache import Cache
from potstill.distilled.recipes import Recipe
from potstill.engine.ridge import LeastSquares
from potstill.errors import InputError
from potstill.evaluation.learners import KernelRidge, TrainingSet
from potstill.methods.base import Examples
from potstill.methods.kip import Kip, KipOptions, LabelSolve, LabelSolveOptions

SMALL = {
    "data": "digits", "method": "label-solve", "ipc": 4, "threads": 1, "device": "cpu",
    "model": "mlp", "width": 16, "depth": 1,
}  # fmt: skip
RIDGE = {"kernel_depth": 2, "ridge": 1e-3}


@pytest.mark.parametrize("repeated", [False, True])
def test_least_squares_in_parts_are_those_of_one_solve(repeated):
    rows, wanted = normal(31, 6), normal(31, 2, seed=1)
    if repeated:
        rows[:, 5] = rows[:, 0]  # many solutions: the one of least norm
    fit = LeastSquares(6)
    for at in range(0, 31, 4):
        fit.add(rows[at : at + 4], wanted[at : at + 4])
    solution, wrong = fit.solved()
    expected = np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0]
    np.testing.assert_allclose(solution.numpy(), expected, atol=1e-12)
    left = rows.numpy() @ expected - wanted.numpy()
    assert float(wrong) == pytest.approx(np.mean(left**2))
    fit.add(torch.full((1, 6), torch.nan, dtype=torch.float64), wanted[:1])
    assert fit.solved()[0].isnan().all()


def found(kind: str = "ntk", frozen: int = 0) -> tuple[LabelSolve, Examples, torch.Tensor, float]:
    task = dataclasses.replace(problem(), labels=torch.arange(6) % 3, learn_labels=True)
    images, targets = normal(6, 1, 8, 8, seed=3), normal(6, 3, seed=4)
    method = LabelSolve(task, LabelSolveOptions(**RIDGE, kernel_kind=kind))
    examples = Examples(images, targets, task.labels, frozen, learn_targets=True)
    estimate = method.estimate(examples, {}, {}, 0)
    return method, examples, estimate.values["targets"], float(estimate.loss)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("frozen", [0, 3])
def test_no_other_labels_err_less(kind, frozen):
    """KIP's own loss on all real examples is what label solve says, and its gradient is 0."""
    method, examples, targets, loss = found(kind, frozen)
    real = dataclasses.replace(method.problem.real, batch=60)  # all that there are
    kip = Kip(dataclasses.replace(method.problem, real=real), KipOptions(**RIDGE, kernel_kind=kind))
    solved = kip.estimate(dataclasses.replace(examples, targets=targets), {}, {}, 0)
    assert float(solved.loss) == pytest.approx(loss, rel=1e-6)
    assert torch.equal(targets[:frozen], examples.targets[:frozen])
    before = kip.estimate(examples, {}, {}, 0)
    assert loss < float(before.loss)
    small = solved.grads["targets"][frozen:].abs().max()
    assert small < 1e-9 * before.grads["targets"][frozen:].abs().max()


def test_the_two_kernels_of_a_network_are_two_learners():
    images, labels = normal(12, 1, 4, 4).float(), torch.arange(12) % 3
    examples = TrainingSet(images, torch.nn.functional.one_hot(labels, 3).float(), labels)
    others = normal(5, 1, 4, 4, seed=9).float()
    recipes = [Recipe(kernel_kind=kind, ridge=1e-3) for kind in ("ntk", "nngp")]
    told = [
        KernelRidge.of(recipe, torch.nn.Identity, torch.device("cpu")).fit(examples, 0)(others)
        for recipe in recipes
    ]
    assert (told[0] - told[1]).abs().max() > 1e-3


def test_a_set_of_real_images_with_better_labels(tmp_path):
    out = tmp_path / "run"
    made = potstill.distill(**SMALL, out=out)
    plain = potstill.distill(**{**SMALL, "method": "random", "augment": ()})
    kept = potstill.load(out)
    assert torch.equal(kept.targets, made.targets)
    assert len(made) == 40
    assert bool((made.targets < 0).any())
    assert kept.recipe.learner == "krr"
    rows = potstill.evaluate(out, nets=3, baselines=("random",))
    assert rows[0].accuracy.mean > rows[1].accuracy.mean + 0.02
    assert plain.targets.min() == 0  # one-hot
    nested = potstill.distill(**SMALL, boost_blocks=2)
    assert len(nested) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_labels": False}, "label-solve finds labels, got learn_labels off"),
        ({"label_examples": 40}, "label_examples must be more than the set's 40 examples"),
        ({"kernel_kind": "nnpg"}, "kernel_kind must be one of ntk, nngp"),
        ({"param": "multi-formation"}, "which only --param pixels can store"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        potstill.distill(**{**SMALL, **options})


def test_a_part_of_the_real_examples_may_do(tmp_path):
    task = dataclasses.replace(problem(), learn_labels=True)
    method = LabelSolve(task, LabelSolveOptions(label_examples=20))
    method.check(Cache(tmp_path))
    rows = method.rows()
    assert len(rows) == len(set(rows.tolist())) == 20
    assert torch.equal(rows, method.rows())
