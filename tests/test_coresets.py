"""Coresets: greedy rules by brute force, order, ties, and the run around them."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_matching import problem
from torch import Tensor, nn

import potstill
from potstill.cache import Cache
from potstill.data.sampling import Weighted
from potstill.data.splits import TensorSplit
from potstill.errors import InputError
from potstill.methods.base import Examples, Problem
from potstill.methods.coresets import (
    FeatureOptions,
    Herding,
    KCenter,
    Random,
    apart,
    first_least,
    whitened,
)
from potstill.seeds import generator


def cloud(count: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=generator(seed), dtype=torch.float64)


def test_herding_is_its_greedy_rule_by_brute_force():
    values = cloud()
    mean, chosen = values.mean(0), []
    for number in range(8):
        left = [row for row in range(20) if row not in chosen]
        so_far = values[chosen].sum(0)
        gaps = [float(((number + 1) * mean - so_far - values[row]).norm()) for row in left]
        chosen.append(left[gaps.index(min(gaps))])
    assert Herding.pick(values, 8)[0] == chosen


def test_k_center_is_its_greedy_rule_by_brute_force():
    values = cloud()
    chosen = [int((values - values.mean(0)).norm(dim=1).argmin())]
    for _ in range(7):
        nearest = torch.cdist(values, values[chosen]).min(1).values
        chosen.append(int(nearest.argmax()))
    found, radius = KCenter.pick(values, 8)
    assert found == chosen
    assert radius == pytest.approx(float(torch.cdist(values, values[chosen]).min(1).values.max()))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_radius_of_k_center_is_at_most_twice_the_least(count, seed):
    values = cloud(8, seed)
    best = min(
        float(torch.cdist(values, values[list(rows)]).min(1).values.max())
        for rows in itertools.combinations(range(8), count)
    )
    assert KCenter.pick(values, count)[1] <= 2 * best + 1e-12
    radii = [KCenter.pick(values, number)[1] for number in range(1, 9)]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] == 0


@pytest.mark.parametrize("method", [Herding, KCenter])
def test_the_first_is_nearest_to_the_mean_and_all_are_chosen_at_last(method):
    values = cloud()
    nearest = int((values - values.mean(0)).norm(dim=1).argmin())
    assert method.pick(values, 1)[0] == [nearest]
    order, loss = method.pick(values, 20)
    assert sorted(order) == list(range(20))
    assert loss == pytest.approx(0, abs=1e-20)
    assert method.pick(values, 7)[0] == order[:7]


@pytest.mark.parametrize("method", [Herding, KCenter])
def test_equal_distances_go_to_the_first_and_none_is_chosen_twice(method):
    twice = torch.cat([cloud(5), cloud(5)])
    order = method.pick(twice, 10)[0]
    assert sorted(order) == list(range(10))
    seen: set[int] = set()
    for row in order:  # of two that are equal, the first one first
        assert row < 5 or row - 5 in seen
        seen.add(row)
    # Rounding does not choose either.
    assert first_least(torch.tensor([1.0 + 1e-12, 1.0, 2.0], dtype=torch.float64)) == 0


def test_apart_is_the_square_of_the_means_distance_over_the_variance():
    values = cloud()
    spread = (values - values.mean(0)).square().sum(1).mean()
    gap = (values[:3].mean(0) - values.mean(0)).square().sum()
    assert apart(values, torch.arange(3)) == pytest.approx(float(gap / spread))
    assert apart(torch.ones(4, 2), torch.arange(2)) == 0


def test_whitened_values_have_a_covariance_near_1():
    images = cloud(500).float().view(500, 1, 1, 3) * torch.tensor([1.0, 2.0, 3.0])
    split = TensorSplit(images, torch.zeros(500, dtype=torch.int64))
    values = whitened(split, 64)(images)
    covariance = torch.cov(values.T, correction=0)
    variances = torch.linalg.eigvalsh(torch.cov(images.flatten(1).double().T, correction=0))
    ridge = 0.1 * variances.mean()
    found = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(found, variances / (variances + ridge), rtol=1e-5, atol=1e-6)


def examples(task: Problem) -> Examples:
    count = len(task.labels)
    return Examples(torch.zeros(count, 1, 8, 8), torch.eye(3)[task.labels], task.labels)


def test_the_set_holds_what_was_chosen_class_by_class():
    task = problem()
    method = Herding(task, FeatureOptions("pixels"))
    method.prepare(Cache(None))
    found = method.estimate(examples(task), {}, {}, 0)
    train = task.real.train
    for label in range(3):
        members = torch.nonzero(train.labels == label)[:, 0]
        values = train.take(members)[0].flatten(1)
        rows = members[torch.tensor(Herding.pick(values, 2)[0])]
        expected = train.take(rows)[0].float()
        assert torch.equal(found.values["images"][task.labels == label], expected)


def test_a_later_block_goes_on_where_the_earlier_ones_ended():
    first = problem(labels=torch.arange(3), seed=0)
    order = torch.cat([torch.arange(3), torch.arange(3)])
    second = problem(labels=order, seed=99)  # each block has a seed of its own
    for kind in (Random, Herding, KCenter):
        both = []
        for task in (first, second):
            options = FeatureOptions("pixels") if kind is not Random else Random.Options()
            method = kind(dataclasses.replace(task, run_seed=5), options)
            method.prepare(Cache(None))
            both.append(method.estimate(examples(task), {}, {}, 0).values["images"])
        assert torch.equal(both[0], both[1][:3])
        assert len(both[1].flatten(1).unique(dim=0)) == 6


def test_random_takes_weights():
    task = problem()
    weights = torch.zeros(60, dtype=torch.float64)
    weights[[3, 8, 21, 22, 44, 50]] = 1
    real = dataclasses.replace(task.real, sampler=Weighted(weights))
    method = Random(dataclasses.replace(task, real=real), Random.Options())
    method.prepare(Cache(None))
    assert sorted(method.chosen.flatten().tolist()) == [3, 8, 21, 22, 44, 50]
    weights[50] = 0
    with pytest.raises(InputError, match="weights must leave every class 2 real examples, class 2"):
        method.prepare(Cache(None))


class Plain(nn.Module):
    """A network without features."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs.flatten(1).float())


def test_a_network_without_features_is_refused_where_they_are_needed():
    with pytest.raises(InputError, match="features=network needs a network that has features"):
        Herding(problem(Plain), FeatureOptions()).check(Cache(None))
    Herding(problem(Plain), FeatureOptions("pixels")).prepare(Cache(None))


def test_features_are_made_once_for_the_same_network_data_and_seed(tmp_path):
    def run(**options: Any) -> int:
        potstill.distill(
            data="digits", cache_dir=str(tmp_path), width=8, lengths=(2,), validation_nets=1,
            **{"method": "k-center", "feature_epochs": 1, **options},
        )  # fmt: skip
        return len(list(Path(tmp_path).rglob("*.safetensors")))

    assert run() == 1
    assert run() == 1
    assert run(seed=1) == 2
    assert run(norm="group") == 3
    assert run(ipc=2) == 3
    assert run(method="herding") == 3
    assert run(feature_epochs=2) == 4


def test_a_coreset_starts_another_method(tmp_path):
    chosen = potstill.distill(
        data="digits", method="herding", features="pixels", ipc=2, out=tmp_path / "chosen",
        lengths=(2,), validation_nets=1,
    )  # fmt: skip
    real = {tuple(row.tolist()) for row in chosen.images.flatten(1)}
    assert len(real) == 20
    moved = potstill.distill(
        data="digits", method="dm", ipc=2, init=str(tmp_path / "chosen"), steps=1,
        outer_lr=1e-9, lengths=(2,), validation_nets=1, real_per_class=5,
    )  # fmt: skip
    torch.testing.assert_close(moved.images, chosen.images)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"param": "basis", "ipc": 4}, "chooses real images, which only --param pixels can store"),
        ({"steps": 5}, "steps has no effect with --method herding"),
        ({"init": "real"}, "init has no effect with --method herding"),
        ({"learn_labels": True}, "learn_labels has no effect with --method herding"),
        ({"real_sampler": "hardness"}, "real_sampler has no effect with --method herding"),
        ({"ipc": 1000}, "ipc must be at most the smallest class's number of train images"),
        ({"features": "pixels", "feature_epochs": 2}, "feature_epochs has no effect with features"),
        ({"feature_epochs": 0}, "feature_epochs must be at least 1, got 0"),
    ],
)
def test_what_has_no_effect_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.distill(data="digits", method="herding", **options)
