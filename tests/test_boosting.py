"""Boost-DD: what stays, what moves and how fast, resume in mid-block, and that any method can be
boosted.
"""

import dataclasses
import json

import numpy
import pytest
import torch
from test_runs import QUICK, for_method
from test_unrolled import SHAPE, problem, rat
from torch import Tensor
from twins import CPU, pixels

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.data.splits import TensorSplit
from potstill.distillation.boosting import OnBlocks, Rates, Stage, examples, stage_sizes
from potstill.distillation.outer import Carried, Hooks, OuterState, Schedule, optimise
from potstill.distillation.run_folder import RunFolder
from potstill.distilled.blocks import Block, initial_blocks
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.optimizers import Adam
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Method, Problem
from potstill.progress import Listener
from potstill.registry import METHODS
from potstill.seeds import generator

BOOSTED = {
    **QUICK,
    "ipc": 3,
    "boost_blocks": 3,
    "steps": 5,
    "validate_every": 2,
    "checkpoint_every": 3,
}


def boosted(blocks: int = 3, **options) -> DistilledSet:
    return potstill.distill(**{**BOOSTED, "ipc": blocks, "boost_blocks": blocks, **options})


@pytest.fixture(scope="module")
def strong() -> DistilledSet:
    """Three blocks of one image per class; labels are learned."""
    return boosted()


def test_strong_boosting_leaves_earlier_blocks_as_they_were_to_the_byte(strong):
    shorter = boosted(2)
    assert strong.budgets == (1, 2, 3)
    for kept, alone in zip(strong.blocks[:2], shorter.blocks, strict=True):
        assert torch.equal(kept.images, alone.images)
        assert torch.equal(kept.targets, alone.targets)
    assert torch.equal(boosted(1).images, strong.blocks[0].images)
    assert not torch.equal(strong.blocks[2].images, strong.blocks[1].images)


def test_a_larger_beta_moves_earlier_blocks_further(strong):
    before = strong.blocks[0]
    moved = {beta: boosted(2, boost_beta=beta).blocks[0] for beta in (0.1, 1.0)}

    def distance(name: str, beta: float) -> float:
        return float((moved[beta].leaves[name] - before.leaves[name]).norm())

    for name in ("images", "targets"):
        assert 0 < distance(name, 0.1) < 0.5 * distance(name, 1.0)


def stage(blocks: int, beta: float = 0.0) -> tuple[Stage, Method]:
    """The last stage of so many blocks of one image of each of three classes, and the method for
    it.
    """
    task = problem()
    made = initial_blocks(
        "gaussian", [pixels(1, 3, SHAPE, learn_labels=True)] * blocks, task.real.train, 0, CPU
    )
    return with_method(Stage(made, Rates(0.05, 0.02, beta)))


def with_method(one: Stage) -> tuple[Stage, Method]:
    """A stage and RaT-BPTT on its examples, all of which are in each batch."""
    per_class = len(one.labels) // 3
    recipe = Recipe(batch_per_class=per_class, classes_per_batch=3, augment=("rotate",))
    return one, rat(dataclasses.replace(problem(), labels=one.labels, recipe=recipe))


def begun(one: Stage, method: Method) -> OuterState:
    return OuterState.start(
        one.learned, method.start()[0], Adam(), Carried(one.number, one.earlier)
    )


def final_leaves(one: Stage, method: Method) -> dict[str, Tensor]:
    schedule = Schedule(4, clip=2.0, validate_every=9)
    state = optimise(
        one.on_blocks(method, CPU), schedule, one.rules({}), begun(one, method), CPU, Hooks()
    )
    return dict(state.leaves)


def test_beta_1_is_joint_optimisation_from_the_same_start():
    nested, method = stage(2, 1.0)
    rows = torch.tensor([0, 3, 1, 4, 2, 5])  # from block by block to class by class
    both = {name: made[rows] for name, made in examples(nested.blocks).items()}
    whole = Block.of_pixels(both["images"], 3, both["targets"])
    joint = final_leaves(*with_method(Stage((whole,), nested.rates)))
    found = final_leaves(nested, method)
    for name in ("images", "targets"):
        together = torch.cat([found[f"0.{name}"], found[f"1.{name}"]])[rows]
        torch.testing.assert_close(together, joint[f"0.{name}"], rtol=0, atol=0)


def test_beta_multiplies_the_learning_rates_of_old_blocks_and_at_0_they_are_no_variables():
    weak = stage(2, 0.1)[0].rules({})
    assert {name: rule.lr for name, rule in weak.items()} == pytest.approx(
        {"0.images": 0.005, "0.targets": 0.002, "1.images": 0.05, "1.targets": 0.02}
    )
    strong, method = stage(2)
    assert list(strong.rules({})) == ["1.images", "1.targets"]
    # The norm is of what can move.
    assert [name for name, rule in strong.rules({}).items() if rule.clipped] == ["1.images"]
    assert list(strong.earlier) == ["0.images", "0.targets"]
    state = begun(strong, method)
    assert (state.updates, state.clip_average, state.step) == (0, None, 0)
    assert all(not moment.any() for pair in state.moments.values() for moment in pair)


def double(task: Problem) -> Problem:
    """The problem in float64."""
    real = task.real
    train = TensorSplit(real.train.take(torch.arange(60))[0].double(), real.train.labels)
    factory = task.networks.factory
    networks = dataclasses.replace(task.networks, factory=lambda: factory().double())
    return dataclasses.replace(task, real=dataclasses.replace(real, train=train), networks=networks)


@pytest.mark.parametrize("way", ["plain", "traced"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("micro_batch", "classes"), [(2, 3), (9, 3), (2, 1)])
def test_frozen_examples_get_no_gradient_and_change_no_other(way, learned, micro_batch, classes):
    """Two of three images of each class are frozen: some batches and micro-batches hold nothing
    else.
    """
    rng, labels = generator(3), torch.arange(9) % 3
    images, targets = (
        torch.randn(9, *SHAPE, generator=rng).double(),
        torch.rand(9, 3, generator=rng).double(),
    )
    recipe = Recipe(batch_per_class=2, classes_per_batch=classes, augment=("rotate",))
    task = dataclasses.replace(
        double(problem(micro_batch=micro_batch)), labels=labels, recipe=recipe
    )
    if way == "traced":
        compiled = CompiledNetwork(task.networks.model(0), backend="eager")
        task = dataclasses.replace(task, networks=task.networks.with_compiled(compiled))
    method = rat(task)
    whole = Examples(images, targets, labels, 0, learned)
    for step in range(3):
        expected = method.estimate(whole, {}, method.start()[0], step)
        found = method.estimate(dataclasses.replace(whole, frozen=6), {}, method.start()[0], step)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-12)
        assert set(found.grads) == ({"images", "targets"} if learned else {"images"})
        for name, grad in found.grads.items():
            assert not grad[:6].any()
            torch.testing.assert_close(grad[6:], expected.grads[name][6:], rtol=1e-9, atol=1e-15)


def test_micro_batches_of_frozen_examples_skip_the_inputs_gradient():
    labels = torch.arange(6) % 3
    recipe = Recipe(batch_per_class=2, classes_per_batch=3)
    task = dataclasses.replace(problem(), labels=labels, recipe=recipe)
    compiled = CompiledNetwork(task.networks.model(0), backend="eager")
    method = rat(dataclasses.replace(task, networks=task.networks.with_compiled(compiled)))
    images = torch.randn(6, *SHAPE, generator=generator(3))
    method.estimate(Examples(images, torch.eye(3)[labels], labels, 3), {}, method.start()[0], 0)
    kinds = {key[0] for key in compiled.functions if isinstance(key[0], str)}  # of the network
    assert kinds == {"gradient", "product", "product_in_theta"}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("killed_at", [5, 6, 8, 13])
def test_a_run_that_died_in_any_block_resumes_to_the_same_bytes(tmp_path, strong, beta, killed_at):
    def die(record, steps):
        assert steps == 15
        if record.step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boosted(boost_beta=beta, out=tmp_path / "run", listener=Listener(step=die))
    resumed = potstill.resume(tmp_path / "run")
    undisturbed = strong if beta == 0 else boosted(boost_beta=beta)
    potstill.save(undisturbed, tmp_path / "undisturbed.safetensors")
    assert (tmp_path / "run/distilled.safetensors").read_bytes() == (
        tmp_path / "undisturbed.safetensors"
    ).read_bytes()
    assert torch.equal(resumed.images, undisturbed.images)
    records = RunFolder(tmp_path / "run").records()
    assert [record.step for record in records] == list(range(1, 16))
    assert [record.block for record in records] == [1] * 5 + [2] * 5 + [3] * 5


def test_the_steps_of_a_boosted_run_cannot_be_changed_half_way(tmp_path):
    def die(record, steps):
        if record.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boosted(out=tmp_path / "run", listener=Listener(step=die))
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace("steps = 5", "steps = 6"))
    with pytest.raises(
        InputError, match=r"steps of the run in .* was 5, its config.toml now says 6; put it back"
    ):
        potstill.resume(tmp_path / "run")


def test_a_prefix_of_a_file_is_the_blocks_it_was_with_its_own_length_and_accuracy(tmp_path, strong):
    potstill.save(strong, tmp_path / "set.safetensors")
    for place, ipc in enumerate((1, 2, 3)):
        part = potstill.load(tmp_path / "set.safetensors", ipc=ipc)
        assert part.ipc == ipc
        assert torch.equal(part.images, torch.cat([block.images for block in strong.blocks[:ipc]]))
        assert torch.equal(
            part.targets, torch.cat([block.targets for block in strong.blocks[:ipc]])
        )
        budget = strong.meta["budgets"][place]
        assert (part.recipe.steps, part.meta["accuracy"]) == (budget["steps"], budget["accuracy"])
        potstill.save(part, tmp_path / "part.safetensors")
        assert potstill.load(tmp_path / "part.safetensors").budgets == tuple(range(1, ipc + 1))
    with pytest.raises(InputError, match=r"ipc must be one that the set holds, 1, 2, 3, got 4"):
        potstill.load(tmp_path / "set.safetensors", ipc=4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "imported"])
def test_any_method_can_be_boosted(method):
    base = for_method(method, {**BOOSTED, "steps": 2, "learn_labels": False})
    base |= {"model": "convnet", "network_examples": 20} if method == "idc" else {}
    if method == "label-solve":  # which learns labels, and leaves the images as they are
        base |= {"learn_labels": True, "init": "real"}
    two, one = (
        potstill.distill(**{**base, "ipc": blocks, "boost_blocks": blocks}) for blocks in (2, 1)
    )
    assert torch.equal(two.blocks[0].images, one.images)
    start = initial_blocks(
        "gaussian",
        [pixels(1, 10, SHAPE)] * 2,
        TensorSplit(torch.zeros(40, *SHAPE), torch.arange(40) % 10),
        0,
        CPU,
    )
    assert two.blocks[1].images.isfinite().all()
    assert not torch.equal(two.blocks[1].images, start[1].images)


def test_blocks_from_real_images_share_none():
    images = torch.randn(60, *SHAPE, generator=generator(2))
    blocks = initial_blocks(
        "real",
        [pixels(size, 3, SHAPE) for size in (2, 3)],
        TensorSplit(images, torch.arange(60) % 3),
        0,
        CPU,
    )
    rows = [
        int((images == image).flatten(1).all(1).nonzero())
        for block in blocks
        for image in block.images
    ]
    assert len(set(rows)) == 15
    assert [rows[place] % 3 for place in range(15)] == [
        int(label) for block in blocks for label in block.labels
    ]


def test_the_wrapper_hands_each_block_its_share():
    one, method = stage(2, 0.5)
    on_blocks = one.on_blocks(method, CPU)
    assert isinstance(on_blocks, OnBlocks)
    found = on_blocks.estimate(one.learned, method.start()[0], 0)
    both = examples(one.blocks)
    plain = method.estimate(
        Examples(both["images"], both["targets"], one.labels, 0, True), {}, method.start()[0], 0
    )
    for name in ("images", "targets"):
        assert torch.equal(
            torch.cat([found.grads[f"0.{name}"], found.grads[f"1.{name}"]]), plain.grads[name]
        )


def test_steps_are_dealt_out_to_the_blocks_unless_they_are_given():
    quick = {
        **BOOSTED,
        "width": 4,
        "unroll": 1,
        "window": 1,
        "real_batch": 10,
        "validate_every": 1000,
    }
    quick.pop("steps")
    one = potstill.distill(**quick)
    assert one.meta["config"]["outer"]["steps"] == 400 // 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ipc": 5, "boost_blocks": 2},
            r"boost_blocks must divide ipc=5 into blocks of equal size, got 2; change --ipc",
        ),
        ({"boost_beta": 1.5}, "boost_beta must be at least 0 and at most 1, got 1.5"),
        ({"boost_beta": -0.1}, "boost_beta must be at least 0 and at most 1, got -0.1"),
        ({"boost_blocks": 0}, "boost_blocks must be at least 1, got 0"),
    ],
)
def test_blocks_that_do_not_fit_are_told(options, message):
    with pytest.raises(InputError, match=message):
        configuration(options)


def test_evaluate_measures_a_prefix_or_all_budgets(tmp_path, capsys):
    boosted(out=tmp_path / "run")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                "--nets",
                "2",
                "--all-budgets",
                "--baseline",
                "full",
                "--full-epochs",
                "1",
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["evaluations"]
    assert [one["settings"]["ipc"] for one in found] == [1, 2, 3]
    assert [[(row["name"], row["ipc"]) for row in one["rows"]] for one in found] == [
        [("distilled", 1)], [("distilled", 2)], [("distilled", 3), ("full", 3)],
    ]  # fmt: skip
    assert "30" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--nets", "2", "--ipc", "2"]) == 0
    alone = json.loads((tmp_path / "run/evaluation.json").read_text())["evaluations"][-1]
    assert alone["rows"][0]["accuracy"] == found[1]["rows"][0]["accuracy"]
    assert main(["evaluate", str(tmp_path / "run"), "--ipc", "4"]) == 2
    assert "ipc must be one that the set holds, 1, 2, 3, got 4" in capsys.readouterr().err


def test_a_prefix_is_exported(tmp_path, capsys):
    boosted(out=tmp_path / "run")
    assert (
        main(["export", str(tmp_path / "run"), "--ipc", "2", "--out", str(tmp_path / "set.npz")])
        == 0
    )
    with numpy.load(tmp_path / "set.npz") as arrays:
        assert len(arrays["labels"]) == 20
    assert (
        main(["export", str(tmp_path / "run"), "--ipc", "9", "--out", str(tmp_path / "set.npz")])
        == 2
    )
    assert "ipc must be one that the set holds, 1, 2, 3, got 9" in capsys.readouterr().err


def test_a_compiled_boosted_run_has_few_shapes():
    batches = [10 * size for size in stage_sizes(pixels(1, 10, SHAPE), 10)]
    for cut in (Cut(100), Cut(34), Cut(34, 4)):
        sizes = [cut.of_stage(batch, 100, compiled=True) for batch in batches]
        assert len(set(sizes)) <= 5
        filled = [-(-batch // size) * size for batch, size in zip(batches, sizes, strict=True)]
        assert all(more <= 1.5 * batch for more, batch in zip(filled, batches, strict=True))
    # A run of one stage, to the same bytes.
    assert [Cut(100).of_stage(batch, 100, compiled=False) for batch in batches] == batches


class Strange(Method):
    """Moves nothing, since what it names is nothing of the run's."""

    def estimate(self, examples, learned, state, step):
        return Estimate(0.0, {"pictures": examples.images}, state)


def test_gradients_of_what_a_method_was_not_given_are_refused():
    with pytest.raises(
        InputError, match="method Strange must name gradients of images, targets, got pictures"
    ):
        potstill.distill(data="digits", method="test_boosting:Strange", steps=1)
