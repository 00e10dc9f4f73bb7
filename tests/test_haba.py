"""HaBa: what the student reads, the losses that keep hallucinators apart, and what is refused."""

import dataclasses
from typing import Any

import pytest
import torch
from test_matching import convnet, problem
from torch import Tensor, nn

import potstill
from potstill.cache import Cache
from potstill.errors import InputError
from potstill.methods.base import Examples, Problem
from potstill.methods.haba import EXTRACTOR_LR, FactorOptions, HaBa, contrastive
from potstill.seeds import generator

SHARING = 3
LABELS = torch.arange(3).repeat_interleave(2 * SHARING)
"""Of two bases of each class, each through three hallucinators."""


class Smooth(nn.Module):
    """A network with smooth features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 5).double(), nn.Linear(5, 3).double()

    def features(self, inputs: Tensor) -> Tensor:
        return self.first(inputs.flatten(1)).tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.features(inputs))


def task(operations: tuple[str, ...] = (), factory: Any = Smooth) -> Problem:
    made = problem(factory, operations, labels=LABELS)
    recipe = dataclasses.replace(made.recipe, augment=operations)
    return dataclasses.replace(made, recipe=recipe, sharing=SHARING)


def prepared(given: Problem, **options: Any) -> HaBa:
    small = {"experts": 1, "expert_batch": 8, "student_steps": 4, "max_start": 1, **options}
    method = HaBa(given, FactorOptions(**small))
    method.prepare(Cache(None))
    return method


def examples(images: Tensor | None = None) -> Examples:
    if images is None:
        images = torch.randn(18, 1, 8, 8, generator=generator(2), dtype=torch.float64)
    return Examples(images, torch.eye(3, dtype=torch.float64)[LABELS], LABELS)


def test_each_step_of_the_student_reads_all_bases_through_one_hallucinator():
    method = prepared(task(), student_steps=30)
    seen = set()
    for rows in method.student_rows(18, 0):
        (one,) = set((rows % SHARING).tolist())
        assert sorted((rows // SHARING).tolist()) == list(range(6))
        seen.add(one)
    assert seen == {0, 1, 2}


def test_the_additional_gradient_is_that_of_finite_differences():
    method, given = prepared(task(("flip", "color"))), examples()
    state = method.start()[0]
    _, grad, _ = method.kept_apart(given, state, 3)
    along = torch.randn(given.images.shape, generator=generator(5), dtype=torch.float64)
    up, down = (
        method.kept_apart(examples(given.images + sign * 1e-5 * along), state, 3)[0]
        for sign in (1, -1)
    )
    assert float((grad * along).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-6)
    method = prepared(task(("flip", "color")))
    whole, alone = (dataclasses.replace(method.options, contrast=weight) for weight in (0.1, 0.0))
    found, plain = (
        with_options(method, options).estimate(given, {}, state, 3) for options in (whole, alone)
    )
    torch.testing.assert_close(found.grads["images"], plain.grads["images"] + grad)
    assert found.loss == pytest.approx(plain.loss + 0.1 * found.info["likeness"])


def with_options(method: HaBa, options: FactorOptions) -> HaBa:
    """The same prepared method with other options."""
    made = HaBa(method.problem, options)
    made.experts = method.experts
    return made


def test_equal_hallucinators_cost_the_most_and_pull_nowhere():
    bases = torch.randn(6, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    method = prepared(task(("flip", "cutout")))
    likeness, grad, _ = method.kept_apart(
        examples(bases.repeat_interleave(SHARING, 0)), method.start()[0], 0
    )
    assert likeness == pytest.approx(0.1)  # cosine 1, times the weight
    assert grad.abs().max() < 1e-12


def test_the_extractor_takes_a_step_of_sgd_with_momentum_on_its_own_loss():
    method, given = prepared(task()), examples()
    state = method.start()[0]
    module = method.problem.network("extractor")
    rule = torch.optim.SGD(module.parameters(), EXTRACTOR_LR, 0.9)
    for step in range(2):
        pair = torch.randperm(SHARING, generator=method.problem.rng("pair", step))[:2]
        views = [given.images[int(one) :: SHARING] for one in pair]
        features = [module.features(view) for view in views]
        labels = LABELS[::SHARING]
        loss = nn.functional.cross_entropy(module(torch.cat(views)), labels.repeat(2))
        cosines = nn.functional.cosine_similarity(*features)
        alike = (1 - cosines).mean() / 2
        loss = loss + 0.1 * (alike + contrastive(torch.cat(features), labels.repeat(2)))
        rule.zero_grad()
        loss.backward()
        rule.step()
        _, _, state = method.kept_apart(given, state, step)
        theta = nn.utils.parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(state["extractor"], theta, rtol=1e-7, atol=1e-9)


def test_the_contrastive_loss_is_its_formula():
    rng = generator(0)
    features = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1])
    unit = features / features.norm(dim=1, keepdim=True)
    total = 0.0
    for one in range(5):
        others = [two for two in range(5) if two != one]
        below = sum(torch.exp(unit[one] @ unit[two] / 0.07) for two in others)
        same = [two for two in others if labels[two] == labels[one]]
        logs = [torch.log(torch.exp(unit[one] @ unit[two] / 0.07) / below) for two in same]
        total -= float(sum(logs)) / len(same) / 5
    assert float(contrastive(features, labels)) == pytest.approx(total, rel=1e-10)
    alone = contrastive(features, torch.arange(5))
    assert float(alone) == 0


def test_a_set_without_hallucinators_is_refused_before_experts_are_trained(tmp_path):
    with pytest.raises(InputError, match="haba needs bases that are seen"):
        potstill.distill(
            data="digits", method="haba", param="pixels", cache_dir=str(tmp_path / "cache"),
            out=tmp_path / "run",
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "run").exists()


def test_it_runs_from_one_end_to_the_other(tmp_path):
    distilled = potstill.distill(
        data="digits", method="haba", ipc=4, hallucinators=2, factor=2, experts=1, max_start=1,
        expert_epochs=1, student_steps=2, steps=3, width=8, lengths=(3,), validation_nets=1,
        cache_dir=str(tmp_path), augment=(), outer_lr=0.1,
    )  # fmt: skip
    assert "log_student_lr" in distilled.metadata.learned
    assert distilled.recipe.lr == pytest.approx(
        torch.tensor(distilled.metadata.learned["log_student_lr"]).exp().item()
    )


def test_it_works_on_the_network_of_the_field():
    method = prepared(task(factory=convnet()))
    found = method.estimate(examples(), {}, method.start()[0], 0)
    assert bool(found.grads["images"].flatten(1).any(1).any())
