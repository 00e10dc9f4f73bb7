"""IDC: its distance by hand, its network's training, CutMix, clusters, and what it refuses."""

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from test_gradients import smooth
from test_matching import distilled_images, problem
from torch import Tensor, nn

import potstill
from potstill.cache import Cache
from potstill.data import augmentation
from potstill.data.mixing import cutmix
from potstill.data.sampling import Weighted
from potstill.data.splits import TensorSplit, sample
from potstill.errors import InputError
from potstill.evaluation.representatives import ByClusters, representatives
from potstill.evaluation.training import TrainedNetwork
from potstill.methods.base import Estimate, Examples, Problem
from potstill.methods.gradients import Distance
from potstill.methods.idc import AUGMENT, IDC, CondensationOptions
from potstill.models import resolve
from potstill.seeds import generator

EXACT = {"rtol": 1e-10, "atol": 1e-13}
OPERATIONS = ("color+crop+cutout",)


def estimate(
    task: Problem, images: Tensor, step: int = 0, state: Any = None, **options: Any
) -> Estimate:
    method = IDC(task, CondensationOptions(**{"real_per_class": 20, "network_steps": 1, **options}))
    targets = torch.eye(3, dtype=torch.float64)[task.labels]
    start = method.start()[0] if state is None else state
    return method.estimate(Examples(images, targets, task.labels), {}, start, step)


def convolution_gradients(
    task: Problem, images: Tensor, label: int, module: nn.Module
) -> list[Tensor]:
    drawn = augmentation.shared_draw(OPERATIONS, task.rng("augmentation", 0, label))
    logits = module(augmentation.apply(images, drawn))
    loss = nn.functional.cross_entropy(logits, torch.full((len(images),), label))
    weights = [one for one in module.parameters() if one.dim() == 4]
    return list(torch.autograd.grad(loss, weights, create_graph=True))


@pytest.mark.parametrize("kind", ["squares", "absolute"])
def test_the_gradient_is_that_of_its_distance_by_a_double_backward(kind):
    task, images = problem(smooth, OPERATIONS), distilled_images().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    module = task.network("start", 0)
    for label in range(3):
        real = task.real.train.take(torch.nonzero(task.real.train.labels == label)[:, 0])[0]
        own = convolution_gradients(task, images[task.labels == label], label, module)
        wanted = convolution_gradients(task, real, label, module)
        for one, other in zip(own, wanted, strict=True):
            gap = one - other.detach()
            total = total + (gap.square() if kind == "squares" else gap.abs()).sum()
    (grad,) = torch.autograd.grad(total, images)
    found = estimate(task, images.detach(), gradient_distance=kind)
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-10)
    torch.testing.assert_close(found.grads["images"], grad, **EXACT)


@pytest.mark.parametrize("kind", ["squares", "absolute"])
def test_there_is_nothing_to_do_at_the_real_images(kind):
    # Under one draw of three operations for both sides.
    task = problem(smooth, OPERATIONS, labels=torch.arange(3).repeat_interleave(20))
    images = task.real.train.take(torch.arange(60))[0]
    found = estimate(task, images, gradient_distance=kind)
    assert found.loss < 1e-12
    if kind == "squares":
        assert found.grads["images"].abs().max() < 1e-12


def test_only_convolutions_count():
    rng = generator(0, "gradients")
    shapes = ((4, 1, 3, 3), (4,), (3, 64))
    own, other = ([torch.randn(shape, generator=rng) for shape in shapes] for _ in range(2))
    distance = Distance("squares", least=4)
    torch.testing.assert_close(distance(own, other), (own[0] - other[0]).square().sum())
    torch.testing.assert_close(
        Distance("squares")(own, other),
        sum((one - two).square().sum() for one, two in zip(own, other, strict=True)),
    )


def test_a_network_without_convolutions_is_refused():
    factory = resolve("mlp", (1, 8, 8), 3, width=4, depth=1)
    with pytest.raises(
        InputError, match="idc compares gradients of convolutions, this network has"
    ):
        IDC(problem(factory), CondensationOptions()).check(Cache(None))


def test_the_network_trains_on_real_examples_in_between():
    task, images = problem(smooth, OPERATIONS), distilled_images()
    options = {"network_steps": 3, "network_examples": 40}
    first = estimate(task, images, 0, **options)
    second = estimate(task, images, 1, first.state, **options)
    module = task.network("start", 0)
    rule = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=5e-4)
    for step, reached in ((1, second), (2, estimate(task, images, 2, second.state, **options))):
        rng = task.rng("training", step)
        chosen = sample(task.real.train, 40, rng)  # one batch of at most 64
        real, labels = task.real.train.take(chosen)
        drawn = augmentation.draw(AUGMENT, 40, rng)
        targets = nn.functional.one_hot(labels, 3).double()
        mixed, targets = cutmix(augmentation.apply(real, drawn), targets, 0.5, rng)
        rule.zero_grad()
        nn.functional.cross_entropy(module(mixed), targets).backward()
        rule.step()
        theta = nn.utils.parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(reached.state["theta"], theta, **EXACT)


def test_of_many_examples_a_step_reads_some_and_moves_only_these():
    labels = torch.arange(3).repeat_interleave(20)
    task = problem(smooth, labels=labels)
    images = torch.randn(60, 1, 8, 8, generator=generator(2), dtype=torch.float64)
    grads = [estimate(task, images, step, most_per_class=5).grads["images"] for step in (0, 1)]
    touched = [grad.flatten(1).any(1).view(3, 20) for grad in grads]
    assert all(bool((one.sum(1) == 5).all()) for one in touched)
    assert not torch.equal(*touched)


def test_cutmix_gives_each_image_a_rectangle_of_another_and_its_share_of_the_label():
    rng, mixed_batches = generator(0), 0
    images = torch.arange(6.0).view(-1, 1, 1, 1).expand(6, 2, 10, 8)
    targets = torch.eye(6)
    for _ in range(200):
        mixed, labels = cutmix(images, targets, 0.5, rng)
        mixed_batches += mixed is not images
        for number in range(6):
            shares = (
                torch.bincount(mixed[number].flatten().long(), minlength=6) / mixed[number].numel()
            )
            torch.testing.assert_close(labels[number], shares)
    assert 70 < mixed_batches < 130
    assert cutmix(images, targets, 0.0, rng) == (images, targets)


def test_operations_joined_by_plus_act_in_turn():
    images = torch.rand(4, 3, 8, 8, generator=generator(0))
    drawn = augmentation.draw(("flip+cutout",), 4, generator(1))
    assert drawn.values.shape == (4, 8)
    flipped = augmentation.flip(images, drawn.values[:, :4])
    expected = augmentation.cutout(flipped, drawn.values[:, 4:])
    assert torch.equal(augmentation.apply(images, drawn), expected)
    with pytest.raises(InputError, match="unknown augmentation 'flop'"):
        potstill.distill(data="digits", augment=("crop+flop",), steps=1)


def test_representatives_lie_at_the_centres_of_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    around = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    values = (centres[:, None] + around).flatten(0, 1)
    assert representatives(values, 3, seed=0).tolist() == [0, 5, 10]
    assert representatives(values, 15, seed=0).tolist() == list(range(15))


def test_real_batches_are_drawn_from_the_representatives():
    images = torch.randn(40, 3, generator=generator(0))
    split = TensorSplit(images, torch.arange(40) % 2)
    sampling = ByClusters(clusters=4)

    def trained(seed: int) -> TrainedNetwork:
        return TrainedNetwork(nn.Identity(), lambda inputs: inputs)

    state = sampling.refresh(trained, split, 0, None)
    chosen = torch.nonzero(state["chosen"])[:, 0]
    assert torch.bincount(split.labels[chosen]).tolist() == [4, 4]
    drawn = sampling.sampler(state, None).draw(split, 100, generator(1))
    assert sorted(drawn.tolist()) == chosen.tolist()
    assert len(sampling.sampler({}, None).draw(split, 100, generator(1))) == 40
    weights = torch.ones(40, dtype=torch.float64)
    weights[chosen[0]] = 0
    own = sampling.sampler(state, weights)
    assert isinstance(own, Weighted)
    assert len(own.draw(split, 100, generator(1))) == 7
    with pytest.raises(InputError, match="representatives in a checkpoint must be marked"):
        sampling.sampler({"chosen": torch.zeros(40)}, None)


@dataclasses.dataclass(frozen=True)
class Recording(ByClusters):
    """A sampler that notes how the network that it is given answers."""

    seen: ClassVar[list[bool]] = []

    def refresh(self, trained: Any, split: Any, seed: int, progress: Any) -> dict[str, Tensor]:
        self.seen.append(trained(seed).module.training)
        return super().refresh(trained, split, seed, progress)


def test_a_sampler_is_given_networks_in_evaluation_mode():
    # Batch norm and dropout answered as in training: the generator had been run to its end.
    potstill.distill(
        data="digits", real_sampler="test_idc:Recording", norm="batch", width=8, steps=1,
        clusters=5, unroll=2, window=1, lengths=(2,), validation_nets=1,
    )  # fmt: skip
    assert Recording.seen == [False]


def test_pixels_stay_between_black_and_white():
    for param in ("pixels", "multi-formation"):
        distilled = potstill.distill(
            data="digits", method="dc", param=param, clamp=True, steps=3, outer_lr=100.0,
            real_per_class=5, lengths=(2,), validation_nets=1, width=8, ipc=1, device="cpu",
        )  # fmt: skip
        back = distilled.fitted.inverse(distilled.blocks[0].leaves["images"])
        assert float(back.min()) >= -1e-6
        assert float(back.max()) <= 1 + 1e-6
        assert float(back.max()) > 0.99


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preprocess": "zca"}, "clamp needs pixels whose bounds are known, .* got zca"),
        ({"param": "basis", "preprocess": "none", "ipc": 4}, "clamp needs images .* got basis"),
        ({"data": "sklearn:iris"}, "clamp keeps pixels of images within bounds, the data are rows"),
    ],
)
def test_pixels_without_bounds_cannot_be_clamped(options, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.distill(**{"data": "digits", "clamp": True, "steps": 1, **options})
