"""Draws of real examples against their probabilities and what they promise."""

import itertools

import pytest
import torch

from potstill.data.sampling import UNIFORM, Balanced, ClassWise, Even, Weighted
from potstill.data.splits import TensorSplit
from potstill.seeds import generator

LABELS = torch.tensor([2, 0, 1, 0, 2, 0, 2, 2, 0])
SPLIT = TensorSplit(torch.zeros(len(LABELS), 1), LABELS)


def test_a_weighted_draw_takes_one_after_the_other_in_proportion_to_what_is_left():
    weights = torch.tensor([1.0, 2.0, 4.0, 0.0, 8.0], dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    # Exact inclusion probabilities of a draw of two.
    for first, second in itertools.permutations(range(5), 2):
        chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        expected[[first, second]] += chance
    split, rng, draws = TensorSplit(torch.zeros(5, 1), torch.zeros(5)), generator(0), 20_000
    found = torch.zeros(5, dtype=torch.float64)
    for _ in range(draws):
        rows = Weighted(weights).draw(split, 2, rng)
        assert len(set(rows.tolist())) == 2
        found[rows] += 1 / draws
    assert found[3] == 0
    assert (found - expected).abs().max() < 4 * 0.5 / draws**0.5
    assert sorted(Weighted(weights).draw(split, 9, rng).tolist()) == [0, 1, 2, 4]
    assert torch.equal(
        UNIFORM.draw(split, 3, generator(1)), torch.randperm(5, generator=generator(1))[:3]
    )


@pytest.mark.parametrize("sampler", [UNIFORM, Weighted(torch.ones(len(LABELS)))])
def test_a_class_wise_draw_holds_so_many_different_examples_of_each_class_asked_for(sampler):
    rows = ClassWise(SPLIT, sampler).draw([2, 0], 3, generator(0))
    for label, drawn in zip([2, 0], rows, strict=True):
        assert LABELS[drawn].tolist() == [label] * 3
        assert len(set(drawn.tolist())) == 3


def test_a_class_that_has_fewer_examples_gives_all_of_them():
    (few, many) = ClassWise(SPLIT).draw([1, 2], 9, generator(0))
    assert few.tolist() == [2]
    assert sorted(many.tolist()) == [0, 4, 6, 7]


def test_every_example_of_a_class_is_as_likely_unless_it_has_a_weight():
    weights = torch.tensor([0.0, 1.0, 5.0, 2.0, 1.0, 4.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    draws = 4000
    for sampler, shares in (
        (UNIFORM, torch.ones(9, dtype=torch.float64)),
        (Weighted(weights), weights),
    ):
        expected = shares.clone()
        # Of one example a class, the chances are the weights over their sum in it.
        for label in range(3):
            expected[label == LABELS] /= shares[label == LABELS].sum()
        each, rng, drawn = (
            ClassWise(SPLIT, sampler),
            generator(1),
            torch.zeros(9, dtype=torch.float64),
        )
        for _ in range(draws):
            drawn[torch.cat(each.draw(range(3), 1, rng))] += 1 / draws
        assert (drawn - expected).abs().max() < 4 * 0.5 / draws**0.5
        assert (drawn[expected == 0] == 0).all()


def test_a_class_wise_draw_follows_from_its_generator_alone():
    first, again, other = (
        torch.cat(ClassWise(SPLIT).draw(range(3), 2, generator(seed))) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [3, 7, 12])
def test_a_balanced_draw_holds_equally_many_of_every_class(count):
    labels = torch.tensor([0] * 50 + [1] * 9 + [2] * 20)
    split = TensorSplit(torch.zeros(len(labels), 1), labels)
    extra = torch.zeros(3)
    for seed in range(60):
        drawn = Balanced().draw(split, count, generator(seed))
        counts = torch.bincount(labels[drawn], minlength=3)
        assert len(drawn.unique()) == len(drawn) == count
        assert counts.max() - counts.min() <= 1
        extra += counts - counts.min()
    assert torch.equal(drawn, Balanced().draw(split, count, generator(seed)))
    if count % 3:  # every class has the one more in turn
        assert (extra > 5).all()
    weights = torch.ones(len(labels), dtype=torch.float64)
    weights[:49] = 0
    assert 49 in Even().sampler({}, weights).draw(split, 3, generator(0)).tolist()
