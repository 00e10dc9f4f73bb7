"""The networks of a run, the decision to compile them, and the check of what was compiled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from potstill.data.splits import Shape
from potstill.engine.compiled_losses import (
    CannotCompile,
    Compiled,
    CompiledNetwork,
    prepare_cache,
)
from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel, couples_batch, cut_of, gradient_operations
from potstill.engine.losses import Batch, Differentiable, InMicroBatches, Whole, cross_entropy
from potstill.errors import InputError
from potstill.files import checksum
from potstill.models import fresh
from potstill.progress import ignore
from potstill.seeds import draws_random, generator, global_seed

PAYS = {"cpu": 3e12, "cuda": 3e14}
"""Floating-point operations, for each function to compile, from which compiling saves time."""
PRODUCT_COST = 8 / 3
"""A Hessian product has eight convolutions a layer where a gradient has three."""
FORWARD_COST = 1 / 3
"""Outputs alone have one."""
COMPILING = "compiling"
"""The name of that work where progress is shown."""
AGREEMENT = 0.9
"""Least cosine of a compiled derivative to the plain one; bfloat16 costs a few thousandths."""


@dataclass(frozen=True)
class NetworkFamily:
    """The networks of one factory, as a run uses them.

    Args:
        factory: makes a fresh network.
        shape: shape of an input.
        classes: number of outputs.
        device: where they compute.
        precision: "float32" or "bfloat16".
        compiled: their derivatives, if they are compiled.
    """

    factory: Callable[[], nn.Module]
    shape: Shape
    classes: int
    device: torch.device
    precision: str
    compiled: CompiledNetwork | None = None

    def flat(self, module: nn.Module) -> FlatModel:
        """Return a network of the family as a function of its parameters."""
        return FlatModel(module, self.precision)

    def model(self, seed: int) -> FlatModel:
        """Make a fresh network, as a function of its parameters."""
        return self.flat(fresh(self.factory, seed, self.device))

    def loss(self, model: FlatModel, seed: Callable[[int], int]) -> Differentiable:
        """Return the mean cross-entropy of a network; `seed`: step -> seed of its dropout."""
        if self.compiled:
            return self.compiled.of(model)
        return cross_entropy(model, seed if self.draws_random else None)

    @cached_property
    def draws_random(self) -> bool:
        """Whether a network draws random numbers when it is called, as dropout does."""
        model = self.model(0)
        inputs = self.batch(2).inputs.to(model.theta.dtype)
        with torch.no_grad():
            return draws_random(lambda: model(model.theta, inputs), self.device)

    def in_parts(self, loss: Differentiable, module: nn.Module, size: int) -> Differentiable:
        """Return a network's loss in micro-batches, or as it is if it couples its batch.

        Args:
            loss: a mean over examples.
            module: the network.
            size: most examples at once.
        """
        if couples_batch(module):
            return Whole(loss)
        return InMicroBatches(loss, size, filled=self.compiled is not None)

    def with_compiled(self, compiled: CompiledNetwork | None) -> "NetworkFamily":
        """Return the same family with these compiled derivatives."""
        return replace(self, compiled=compiled)

    def batch(self, count: int) -> Batch:
        """Return a batch of `count` random inputs and one-hot targets."""
        inputs = torch.randn(count, *self.shape, generator=generator(0, "example"))
        targets = torch.eye(self.classes)[torch.arange(count) % self.classes]
        return Batch(inputs.to(self.device), targets.to(self.device))

    @cached_property
    def cut(self) -> Cut:
        """How a batch is cut into what is taken at once."""
        return cut_of(fresh(self.factory, 0, self.device), self.shape, self.device)

    def fingerprint(self) -> str:
        """Return a hash of what tells these networks from others: one of them, and its outputs."""
        model = self.model(0)
        inputs = self.batch(2).inputs.cpu().to(model.theta.dtype)
        with torch.no_grad(), global_seed(0, torch.device("cpu")):
            outputs = model.module.cpu()(inputs)
        # Coarsely rounded: kernels of different processors differ in the last bits.
        known = {"theta": model.theta.cpu(), "outputs": (outputs * 10).round()}
        return checksum(known, {"names": model.names, "shapes": list(map(list, model.shapes))})

    def operations(self) -> float:
        """Return the floating-point operations of a gradient, for one example."""
        return gradient_operations(self.model(0), self.shape)


def compiled_networks(
    family: NetworkFamily,
    gradients: Sequence[int],
    products: Sequence[int],
    logits: Sequence[int],
    say: Callable[[str], None],
    work: Callable[[str, int, int], None] = ignore,
    pulled: Sequence[int] = (),
    features: Sequence[int] = (),
) -> CompiledNetwork:
    """Compile derivatives for batches of these sizes, and compare them with plain ones.

    They are compiled at one network and compared at another one.

    Args:
        family: the networks.
        gradients: batch sizes of gradients.
        products: batch sizes of Hessian products.
        logits: batch sizes of outputs.
        say: takes sentences for the user.
        work: takes (name, done, total) while it compiles.
        pulled: batch sizes of Hessian products in the batch alone.
        features: batch sizes of features.
    Raises:
        CannotCompile: the network cannot be compiled, or networks of the factory
            differ in more than their parameters and buffers.
    """
    network, second = CompiledNetwork(family.model(0), family.cut), family.model(1)
    takes = comparisons(family, network.of(second), second)
    sizes = (gradients, products, pulled, logits, features)
    calls = [(take, count) for take, some in zip(takes, sizes, strict=True) for count in some]
    pairs = []
    for done, (take, count) in enumerate(calls):
        work(COMPILING, done, len(calls))
        pairs.append(take(count))
    work(COMPILING, len(calls), len(calls))
    for result, expected in pairs:
        cosine = torch.cosine_similarity(
            result.flatten().double(), expected.flatten().double(), dim=0
        )
        if bool(expected.any()) and not cosine > AGREEMENT:
            raise CannotCompile(
                "two networks of the factory differ in more than parameters and buffers (cosine "
                f"{cosine:.2f})"
            )
    count = network.compilations
    say(f"compiled {count} function{'s' * (count > 1)} in {network.seconds:.0f} s")
    return network


def compiled_for_training(
    family: NetworkFamily,
    count: int,
    wanted: str,
    work: Callable[[], float],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> CompiledNetwork | None:
    """Compile what networks take that train on a set and are tested, if it is worth it.

    Args:
        family: the networks.
        count: examples in a training step.
        wanted: "on", "off" or "auto".
        work: counts floating-point operations.
        say: hears why not.
        progress: called as functions are compiled.
    Raises:
        InputError: `wanted` is "on" and the network cannot be compiled.
    """

    def build() -> CompiledNetwork:
        step, test = [family.cut.size(count)], [family.cut.most]
        return compiled_networks(family, step, [], test, say, progress)

    coupled = couples_batch(family.model(0).module)
    obstacle = "batch norm is another function in evaluation than in training" if coupled else None
    return compiled_if_worth(wanted, family.device, work, build, say, obstacle)


Pair = tuple[Tensor, Tensor]


def comparisons(
    family: NetworkFamily, fast: Compiled, model: FlatModel
) -> tuple[Callable[[int], Pair], ...]:
    """Return, for each kind of compiled function, what takes it on a batch of a size.

    The kinds are gradient, Hessian product, that in the batch alone, outputs and features; each
    gives (the compiled function's value, the plain one's).

    Args:
        family: of the network.
        fast: its compiled derivatives.
        model: the network.
    """
    theta, plain = model.theta, cross_entropy(model, lambda _: 0)

    def asking(count: int) -> tuple[Batch, Tensor]:
        still = family.batch(count)
        along = plain.gradient(theta, still, 0)[1]
        return replace(still, inputs=still.inputs.requires_grad_()), along

    def gradient(count: int) -> Pair:
        batch = family.batch(count)
        return fast.gradient(theta, batch, 0)[1], plain.gradient(theta, batch, 0)[1]

    def product(count: int) -> Pair:
        batch, along = asking(count)
        return fast.product(theta, batch, 0, along)[0], plain.product(theta, batch, 0, along)[0]

    def pulled(count: int) -> Pair:
        batch, along = asking(count)
        own, other = (one.batch_product(theta, batch, 0, along)[0] for one in (fast, plain))
        assert own is not None  # the inputs ask
        assert other is not None
        return own, other

    def logits(count: int) -> Pair:
        inputs = family.batch(count).inputs
        return fast.logits(theta, inputs), model(theta, inputs).detach()

    def features(count: int) -> Pair:
        inputs = family.batch(count).inputs
        found, expected = fast.features(theta, inputs), model.features(theta, inputs).detach()
        # Features behind a ReLU all point the same way: what counts is how they differ.
        return found - found.mean(0), expected - expected.mean(0)

    return gradient, product, pulled, logits, features


def compiled_if_worth(
    wanted: str,
    device: torch.device,
    work: Callable[[], float],
    build: Callable[[], CompiledNetwork],
    say: Callable[[str], None],
    obstacle: str | None = None,
    functions: int = 3,
) -> CompiledNetwork | None:
    """Compile if it is asked for or worth it; return None otherwise, and say what is missing.

    Args:
        wanted: "on", "off" or "auto".
        device: the device of the run.
        work: counts the run's floating-point operations.
        build: compiles, or raises CannotCompile.
        say: takes sentences for the user.
        obstacle: another reason not to compile, as the end of a sentence.
        functions: how many will be compiled.
    Raises:
        InputError: `wanted` is "on" and the network cannot be compiled.
    """
    if wanted == "off":
        return None
    if wanted == "auto" and too_short(work(), functions, device):
        return None  # as most runs of a first hour: nothing is missing
    reason = obstacle or missing_compiler(device)
    if reason is None:
        say("compiling what the run takes of a network; the next run finds it in a cache")
        try:
            return build()
        except CannotCompile as error:
            reason = str(error)
    if wanted == "on":
        raise InputError(f"compile=on is not possible: {reason}; use --compile auto")
    say(f"not compiled: {reason}")
    return None


def too_short(work: float, functions: int, device: torch.device) -> bool:
    """Return whether compiling does not pay for so many floating-point operations."""
    return work < functions * PAYS.get(device.type, 0.0)


def missing_compiler(device: torch.device) -> str | None:
    """Return what is missing to compile for a device; None if nothing is.

    It is the end of a sentence.
    """
    if device.type == "cuda":
        return None if has_triton() else "there is no Triton; pip install triton"
    if device.type != "cpu":
        return f"torch's compiler is not used on {device.type}"
    try:
        prepare_cache()
    except CannotCompile as error:
        return str(error)
    from torch._inductor.cpp_builder import (
        get_cpp_compiler,  # here: importing it takes most of a second
    )

    try:
        get_cpp_compiler()
    except RuntimeError:
        return "there is no C++ compiler; install g++ or clang++"
    return None
