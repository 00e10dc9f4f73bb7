"""RCIG: Loo et al., "Dataset Distillation with Convexified Implicit Gradients", ICML 2023,
arXiv:2302.06755.

A network of a pool is made linear around its parameters: f(x) = J(x) tau + phi(x) w, J being the
derivative of its outputs in all parameters but the last layer's weights, phi what that layer reads.
Given tau, w is a ridge regression on the n distilled examples S with targets y around 0,

    a = (phi(S) phi(S)' + l I)^-1 (y - J(S) tau),  w = phi(S)' a,  l = ridge n,

and tau lowers the convex

    L(tau) = (|y - J(S) tau - phi(S) w|^2 + l |w|^2 + l |tau|^2) / (2 n K),

whose gradient is l (tau - J(S)' a) / (n K) and whose Hessian times v is
l (v + J(S)' (phi(S) phi(S)' + l I)^-1 J(S) v) / (n K). Some steps of Adam find tau, others solve
H v = g, g being the gradient in tau of the loss on real examples. The set follows the gradient of
that loss at fixed tau, less that of v' dL/dtau: the implicit gradient, which is shortened to the
length of the direct one if it is longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.options import option
from potstill.distilled.recipes import Recipe
from potstill.engine.ridge import centred
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Learnable, Method, Needs, State
from potstill.methods.features import MirroredOptions, require_images
from potstill.methods.frepo import ahead
from potstill.methods.linear_networks import Inner, Linear, Solution, descend, searched
from potstill.methods.network_pool import PLACES, USED, NetworkPool, Networks
from potstill.workers import in_order

PLATT = "platt"
"""The learned logarithm of the factor on predictions."""
RATE, INVERSE_RATE, SEEN, ROSE, FELL = "solver rate", "inverse rate", "solved", "rose", "fell"
"""Names in the state: Adam's rates for tau and for v; of how many solutions the loss rose in all,
and of how many it fell at every step, since the first was changed.
"""
LEAST_RATE, LEAST_INVERSE_RATE = 1e-5, 5e-5
"""Where the search for the rates begins."""
EVERY, MANY_ROSE, MANY_FELL, SLOWER, FASTER = 50, 0.29, 0.7, 0.9, 1.05
"""Solutions after which the first rate is looked at; shares of them, and what follows from each."""


@dataclass(frozen=True)
class RcigOptions(MirroredOptions):
    """Options of RCIG."""

    networks: int = option(30, "in the pool", low=1)
    network_life: int = option(
        100, "steps that a network trains on the set before a fresh one takes its place", low=1
    )
    most_training: int = option(
        15, "most steps that a network trains after it was used, at least 1, at random", low=1
    )
    pool_lr: float = option(5e-5, "learning rate with which they train", low=0, open_low=True)
    ridge: float = option(5e-4, "regularisation, for each example", low=0, open_low=True)
    solver_steps: int = option(20, "Adam's, for the inner problem and for its inverse", low=1)
    platt_lr: float = option(0.03, "learning rate of the scale of predictions", low=0)


class Rcig(Method):
    """RCIG."""

    Options: ClassVar[type] = RcigOptions
    options: RcigOptions
    needs: ClassVar[Needs] = Needs(features=True, targets="numbers", uncoupled=True)
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "learn_labels": True,
        "norm": "none",
        "network_init": "lecun",
        "inner_activation": "softplus",
        "inner_lr": 1e-4,
        "outer_optimizer": "adabelief",
        "outer_lr": 3e-3,
        "average": 0.99,
        "clip": 0.0,
        "real_batch": 1024,
        "precision": "float32",
        "steps": 2000,
    }
    step_words: ClassVar[str] = (
        "Each outer step trains a network, made linear, on the synthetic {noun}s, and changes them "
        "so that it would have learned to err less on real training {noun}s."
    )
    loss_words: ClassVar[str] = (
        "The cross-entropy on real training {noun}s of a network, made linear, that trained on the "
        "synthetic {noun}s, less how far the learned labels' largest entries are ahead. Lower is "
        "better."
    )

    @cached_property
    def of(self) -> Networks:
        """The networks of the problem."""
        return Networks(self.problem)

    @cached_property
    def pool(self) -> NetworkPool:
        """The pool."""
        return NetworkPool(self.of, self.options.networks)

    @cached_property
    def moving(self) -> Tensor:
        """Which parameters are the inner problem's, (P,): all but the last layer's weights."""
        model = self.of.evaluating
        last = last_linear(model.module)
        kept = [
            torch.full((size,), float(name != last))
            for name, size in zip(model.names, model.sizes, strict=True)
        ]
        return torch.cat(kept).to(model.theta)

    def check(self, cache: Cache) -> None:
        require_images(self.problem, self.options.mirrored_copies)
        if not last_linear(self.of.evaluating.module):
            raise InputError(
                "method rcig needs a network that ends in a linear layer, this one has none; take "
                "another --model, such as convnet"
            )

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        zero = torch.zeros((), device=self.problem.device)
        state = {**self.pool.start(), RATE: 0.0, INVERSE_RATE: 0.0, SEEN: 0, ROSE: 0, FELL: 0}
        return state, {PLATT: Learnable(zero, self.options.platt_lr)}

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        after = self.pool.drawn(self.trained(examples, state, step), step)
        network = self.pool.at(after, after[USED])[0]
        linear = Linear(self.of.evaluating, network, self.moving)
        images, targets = examples.images.detach(), centred(examples.targets.detach())
        ridge = self.options.ridge * len(images)
        with torch.no_grad():
            inner = Inner(linear, *self.with_copies(images, targets), ridge)
            solution, after = self.solution(inner, after)
        tau = solution.values
        loss, grads, of_tau = self.on_real(linear, examples, tau, learned, step)
        with torch.no_grad():
            vector, after = self.inverse(inner, of_tau, after)
        implicit = self.implicit(linear, examples, tau, vector)
        for name, grad in implicit.items():
            grads[name] = grads[name] - no_longer(grad, grads[name])
        return Estimate(loss, grads, after)

    def trained(self, examples: Examples, state: State, step: int) -> State:
        """Return the state after the network that was used last has trained on the set.

        One that has trained for its life gives way to a fresh one then.
        """
        if (place := state[USED]) < 0:
            return state
        images, targets = self.with_copies(
            examples.images.detach(), centred(examples.targets.detach())
        )
        rng = self.problem.rng("training", step)
        count = int(torch.randint(1, self.options.most_training + 1, (), generator=rng))
        share = 1 / targets.shape[1]
        after = self.pool.trained(
            state, place, step, lambda number: (images, targets), count, share, self.options.pool_lr
        )
        old = after[PLACES][place][1] >= self.options.network_life
        return self.pool.renewed(after, place, step) if old else after

    def solution(self, inner: Inner, state: State) -> tuple[Solution, dict[str, Any]]:
        """Solve the inner problem; return the state with what that says of the rate."""
        steps, like = self.options.solver_steps, self.moving
        rate = state[RATE] or searched(inner.loss_and_gradient, like, LEAST_RATE, steps)
        found = descend(inner.loss_and_gradient, like, rate, steps)
        seen, rose, fell = state[SEEN] + 1, state[ROSE] + found.rose, state[FELL] + found.fell
        if seen == EVERY:
            rate *= SLOWER if rose >= MANY_ROSE * EVERY else 1.0
            rate *= FASTER if fell >= MANY_FELL * EVERY else 1.0
            seen = rose = fell = 0
        return found, {**state, RATE: rate, SEEN: seen, ROSE: rose, FELL: fell}

    def inverse(self, inner: Inner, of_tau: Tensor, state: State) -> tuple[Tensor, dict[str, Any]]:
        """Return H^-1 of the gradient in tau, and the state with the rate that finds it."""

        def gradient(vector: Tensor) -> tuple[Tensor, Tensor]:
            product = inner.hessian(vector)
            return (vector * (product / 2 - of_tau)).sum(), product - of_tau

        steps, like = self.options.solver_steps, self.moving
        rate = state[INVERSE_RATE] or searched(gradient, like, LEAST_INVERSE_RATE, steps)
        return descend(gradient, like, rate, steps).values, {**state, INVERSE_RATE: rate}

    def on_real(
        self, linear: Linear, examples: Examples, tau: Tensor, learned: Leaves, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of a real batch, and its gradients at fixed tau and in tau.

        Args:
            linear: the network.
            examples: the distilled set.
            tau: (P,).
            learned: values that are learned beside the set.
            step: number of the outer step.
        """
        problem, real = self.problem, self.problem.real
        chosen = real.sampler.draw(real.train, real.batch, problem.rng("real batch", step))
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in examples.leaves.items()}
        inner, own = self.inner(linear, examples, leaves)
        moved = tau.detach().requires_grad_()
        weights = inner.features.T @ inner.dual(moved)
        fixed, platt = weights.detach(), learned.get(PLATT, tau.new_zeros(())).detach()

        def of_part(rows: Tensor) -> tuple[Tensor, ...]:
            images, labels = real.train.take(rows)
            images = images.to(tau.dtype)
            with torch.no_grad():
                features, along = linear.features(images), linear.along(images, tau)
            both = [each.detach().requires_grad_() for each in (fixed, along, platt)]
            predicted = both[1] + features @ both[0]
            loss = F.cross_entropy(both[2].exp() * predicted, labels, reduction="sum")
            of_weights, of_along, of_platt = torch.autograd.grad(loss, both)
            return loss.detach(), of_weights, of_platt, linear.back(images, of_along)

        tasks = (partial(of_part, rows) for rows in chosen.split(real.micro_batch))
        total = [torch.zeros_like(one) for one in (tau.new_zeros(()), fixed, platt, tau)]
        for part in in_order(tasks, problem.device):
            for sum_, more in zip(total, part, strict=True):
                sum_ += more
        loss, of_weights, of_platt, of_tau = (one / len(chosen) for one in total)
        beside = -ahead(own, 1 / (2 * own.shape[1]))
        through = (weights * of_weights).sum() + beside
        more, *found = torch.autograd.grad(through, [moved, *leaves.values()])
        grads = dict(zip(leaves, found, strict=True))
        if PLATT in learned:
            grads[PLATT] = of_platt
        return loss + beside.detach(), grads, of_tau + more

    def implicit(
        self, linear: Linear, examples: Examples, tau: Tensor, vector: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradient in the set of v' dL/dtau, at fixed v and tau."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in examples.leaves.items()}
        inner, _ = self.inner(linear, examples, leaves)
        # v' dL/dtau = l (v' tau - (J v)' a) / (n K)
        changed = -inner.scale * (linear.along(inner.images, vector) * inner.dual(tau)).sum()
        found = torch.autograd.grad(changed, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def inner(self, linear: Linear, examples: Examples, leaves: Leaves) -> tuple[Inner, Tensor]:
        """Return the inner problem on leaves of the set, and its targets without copies."""
        own = centred(leaves.get("targets", examples.targets.detach()))
        images, targets = self.with_copies(leaves["images"], own)
        return Inner(linear, images, targets, self.options.ridge * len(own)), own

    def with_copies(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return examples, and after them their mirrored copies if the method takes some."""
        if self.options.mirrored_copies != "on":
            return images, targets
        return torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        copies = self.options.mirrored_copies == "on"
        return replace(recipe, learner="network-mse", mirrored_copies=copies)

    @classmethod
    def words(cls, options: RcigOptions) -> list[tuple[str, str]]:
        return [
            ("Networks", f"a pool of {options.networks}, each for {options.network_life} steps"),
            ("Inner problem", f"{options.solver_steps} steps of Adam, and as many for its inverse"),
            ("Ridge", f"{options.ridge:g} for each example"),
        ]


def last_linear(module: nn.Module) -> str:
    """Return the name of the weights of the last linear layer; "" if there is none."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return f"{names[-1]}.weight" if names else ""


def no_longer(grad: Tensor, than: Tensor) -> Tensor:
    """Return a gradient, shortened to the length of another if it is longer; 0 for NaN."""
    length, most = grad.norm(), than.norm()
    return (grad * torch.where(length > most, most / length, 1)).nan_to_num(0.0, 0.0, 0.0)
