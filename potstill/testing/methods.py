"""The contract of a method, see `potstill.methods.base`."""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.config import configuration
from potstill.config.options import declared, may_be_auto, options_class
from potstill.distillation.boosting import LEARNED, OnBlocks, Rates, Stage
from potstill.distillation.leaf_rules import Rule
from potstill.distillation.outer import Carried, Hooks, OuterState, Schedule, optimise
from potstill.distillation.packing import pack, unpack
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.files import load_tensors, save_tensors
from potstill.methods.base import Estimate, Examples, Problem, Work
from potstill.parameterisations.base import Budget
from potstill.parameterisations.pixels import Pixels
from potstill.registry import METHODS, trust_given
from potstill.testing.contracts import Part, check_options, same
from potstill.testing.problems import CLASSES, CPU, SIZES, small_examples, small_problem

SAME_BYTES = "that a resumed run gives the bytes of an undisturbed one"
MEMBERS = (
    "estimate",
    "start",
    "prepare",
    "recipe",
    "work",
    "words",
    "needs",
    "defaults",
    "remedy",
)
"""What potstill asks a method for."""
OPTIMIZER_OPTIONS = {
    f"{loop}_{name}"
    for loop in ("inner", "outer")
    for name in ("momentum", "weight_decay", "milestones", "decay")
}
"""Options that not every optimizer has, which a method may give defaults for."""
LR = 0.05
"""Outer learning rate of a method that asks for none."""


def check_method(
    method: str | type, options: Any = None, *, problem: Problem | None = None, steps: int = 30
) -> None:
    """Check that a method keeps to the contract of `potstill.methods.base`.

    Args:
        method: its registered name, "package.module:Name", or the class.
        options: an instance of its Options; None: their defaults, resolved for the small problem.
        problem: the problem to run it on; None: `small_problem()`.
        steps: outer steps in which its own loss must fall.
    Raises:
        ContractError: it breaks a rule.
        InputError: there is no such method.
    """
    trust_given([method])
    made: Any = METHODS[method] if isinstance(method, str) else method
    part = Part(method if isinstance(method, str) else METHODS.name_of(made))
    check_description(part, made)
    check_options(part, made)
    chosen = options if options is not None else default_options(part, made)
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), ["contract", part.name])
        trial = Trial(part, made, chosen, problem or small_problem(), cache)
        check_start(trial)
        check_replay(trial)
        check_gradient(trial)
        check_checkpoint(trial, Path(folder) / "state.safetensors")
        check_progress(trial, steps)
        check_surroundings(trial)


@dataclass(frozen=True)
class Trial:
    """A method on a problem.

    Args:
        part: names the method.
        method: the class.
        options: an instance of its Options.
        problem: that it is tried on.
        cache: keeps what it prepares.
    """

    part: Part
    method: Any
    options: Any
    problem: Problem
    cache: Cache

    def prepared(self, problem: Problem | None = None) -> Any:
        """Make a prepared instance, for the trial's problem or another."""
        made = self.method(problem or self.problem, self.options)
        made.prepare(self.cache)
        return made

    def estimate(
        self, method: Any, examples: Examples, state: Mapping[str, Any], step: int
    ) -> Estimate:
        """Estimate once.

        Args:
            method: a prepared instance.
            examples: the distilled set.
            state: the method's state.
            step: number of the outer step.
        """
        result = method.estimate(examples, learned_of(method), state, step)
        self.part.must(
            "give an Estimate from estimate()",
            isinstance(result, Estimate),
            f"got {type(result).__name__}",
            protects="the outer loop",
        )
        return cast(Estimate, result)


def learned_of(method: Any) -> dict[str, Tensor]:
    """Return the first values of what a method learns beside the set."""
    return {name: one.value for name, one in method.start()[1].items()}


def check_description(part: Part, method: Any) -> None:
    """Check the attributes of a method that potstill reads before it makes an instance."""
    part.must(
        "be a class",
        isinstance(method, type),
        f"got {type(method).__name__}",
        protects="that an instance can be made for each block of a boosted set",
    )
    for member in MEMBERS:
        part.must(
            f"have {member!r} (derive from potstill.methods.base.Method)",
            hasattr(method, member),
            "it has none",
            protects="every call that a run makes",
        )
    everything = configuration()
    own = {item.name for item, _ in declared(options_class(method))}
    shared = set(everything.flat()) - set(everything.tables()["method"]) | {"method"}
    part.must(
        "name its options otherwise than potstill's own",
        not own & shared,
        f"got {', '.join(sorted(own & shared))}",
        protects="that every option is one flag",
    )
    strange = set(method.defaults) - set(everything.flat()) - OPTIMIZER_OPTIONS
    part.must(
        "name options of potstill in defaults",
        not strange,
        f"got {', '.join(sorted(strange))}",
        protects="that what --help says holds",
    )


def default_options(part: Part, method: Any) -> Any:
    """Make a method's default options, with every "auto" resolved for the small problem."""
    options = options_class(method)()
    if hasattr(options, "resolved"):
        options = options.resolved(SIZES)
    for item, hint in declared(type(options)):
        part.must(
            f"replace 'auto' of {item.name} in Options.resolved(sizes)",
            not (may_be_auto(hint) and getattr(options, item.name) == "auto"),
            "it is still there",
            protects="that a run stores what it did",
        )
    return options


def check_start(trial: Trial) -> None:
    """Check the form of what a method starts with."""
    started = trial.prepared().start()
    trial.part.must(
        "give (state, learnables) from start()",
        isinstance(started, tuple) and len(started) == 2,
        f"got {type(started).__name__}",
        protects="what a checkpoint holds",
    )


def check_replay(trial: Trial) -> None:
    """Check that a step repeats from (seed, step), and leaves its arguments unchanged."""
    for step in (0, 3):
        one, other = (estimate_under(trial, global_seed, step) for global_seed in (1, 2))
        trial.part.must(
            "draw everything from (seed, step), as problem.rng does",
            same(dict(one.grads), dict(other.grads))
            and same(torch.tensor(float(one.loss)), torch.tensor(float(other.loss))),
            f"two estimates at step {step} differ",
            protects=SAME_BYTES,
        )


def estimate_under(trial: Trial, global_seed: int, step: int) -> Estimate:
    """Estimate after seeding torch's global generator, which must not matter."""
    method = trial.prepared()
    examples, state = small_examples(method.problem), method.start()[0]
    before = copy.deepcopy((examples, dict(state)))
    torch.manual_seed(global_seed)
    result = trial.estimate(method, examples, state, step)
    trial.part.must(
        "not change the examples or the state that it is given",
        same(before, (examples, dict(state))),
        f"it does at step {step}",
        protects="that a step can be taken again",
    )
    return result


def check_gradient(trial: Trial) -> None:
    """Check the gradient for hard and learned targets, with some examples frozen and with none."""
    free = trial.method.needs.targets != "classes"
    for learn_targets in (False, True) if free else (False,):
        for frozen in (0, CLASSES):
            labels = torch.arange(2 * CLASSES) % CLASSES if frozen else trial.problem.labels
            method = trial.prepared(dataclasses.replace(trial.problem, labels=labels))
            examples = small_examples(method.problem, learn_targets, frozen)
            result = trial.estimate(method, examples, method.start()[0], 0)
            if trial.method.needs.pixels:
                check_choice(trial.part, examples, result)
                continue
            check_gradients(trial.part, {**examples.leaves, **learned_of(method)}, result)
            trial.part.must(
                "give a gradient that is not 0",
                bool(result.grads["images"][frozen:].any()),
                "all of it is",
                protects="that the set moves",
            )


def check_choice(part: Part, examples: Examples, result: Estimate) -> None:
    """Check the examples that a method gives in place of a gradient.

    Args:
        part: names the method.
        examples: that it was given.
        result: what it gave.
    """
    chosen = result.values.get("images")
    part.must(
        "give examples like those given, in values['images'], since it needs.pixels",
        chosen is not None and chosen.shape == examples.images.shape,
        f"got {None if chosen is None else tuple(chosen.shape)} for {tuple(examples.images.shape)}",
        protects="that the set holds what was chosen",
    )


def check_gradients(part: Part, leaves: Mapping[str, Tensor], result: Estimate) -> None:
    """Check names, shapes and finiteness.

    Args:
        part: names the method.
        leaves: what it may give gradients of.
        result: what it gave.
    """
    strange = sorted(set(result.grads) - set(leaves))
    part.must(
        f"give gradients of {', '.join(leaves)} only",
        not strange,
        f"got {', '.join(strange)}",
        protects="that each has a learning rate",
    )
    part.must(
        "give the gradient in the images",
        "images" in result.grads,
        "there is none",
        protects="that the set moves",
    )
    for of, grad in result.grads.items():
        part.must(
            "give gradients like their tensors",
            grad.shape == leaves[of].shape,
            f"got {tuple(grad.shape)} for {of} of {tuple(leaves[of].shape)}",
            protects="the outer step",
        )
        part.must(
            "give finite numbers on a small problem",
            bool(grad.isfinite().all()) and math.isfinite(result.loss),
            f"the gradient of {of} or the loss is not",
            protects="that a run is not made of skipped steps",
        )


@dataclass(frozen=True)
class Run:
    """Outer steps of a method on one block of pixels, with the optimizer that the method asks for.

    Args:
        stage: the block and its learning rates.
        rules: how each leaf moves.
        first: the state before the first step.
        schedule: of 6 steps.
    """

    stage: Stage
    rules: Mapping[str, Rule]
    first: OuterState
    schedule: Schedule

    @classmethod
    def of(cls, method: Any) -> "Run":
        """Begin a run of a prepared method."""
        asked = {name: value for name, value in method.defaults.items() if "outer_" in name}
        known = configuration(asked)
        optimizer, lr = known.outer_optimizer.options, known.outer.outer_lr
        rate = LR if lr == "auto" else float(lr)
        block = Block(
            {"images": small_examples(method.problem).images},
            Pixels(
                Budget(
                    method.problem.networks.shape, CLASSES, len(method.problem.labels) // CLASSES
                )
            ),
        )
        stage = Stage((block,), Rates(rate, rate))
        state, learnables = method.start()
        values = {LEARNED + name: one.value for name, one in learnables.items()}
        first = OuterState.start({**stage.learned, **values}, state, optimizer, Carried())
        return cls(stage, stage.rules(learnables), first, Schedule(6, optimizer))

    def on_blocks(self, method: Any) -> OnBlocks:
        """Return a prepared method, wrapped to move the block."""
        return self.stage.on_blocks(method, CPU)

    def taken(self, method: Any, start: OuterState, steps: int) -> OuterState:
        """Take outer steps up to number `steps`."""
        schedule = dataclasses.replace(self.schedule, steps=steps)
        return optimise(self.on_blocks(method), schedule, self.rules, start, CPU, Hooks())


def check_checkpoint(trial: Trial, path: Path) -> None:
    """Check that a run goes on from a written and read state as if without interruption."""
    method = trial.prepared()
    run = Run.of(method)
    half = run.taken(method, run.first, 3)
    whole = run.taken(method, half, 6)
    tensors, meta = pack(half)
    trial.part.must_be_plain(
        "have a state of tensors and plain data, by names", meta, protects="every checkpoint"
    )
    save_tensors(path, tensors, "checkpoint", meta)
    resumed = run.taken(trial.prepared(), unpack(*load_tensors(path, "checkpoint")), 6)
    trial.part.must(
        "go on from a checkpoint as if nothing had happened",
        same(whole.leaves, resumed.leaves) and same(dict(whole.method), dict(resumed.method)),
        "another set came out",
        protects=SAME_BYTES,
    )


def check_progress(trial: Trial, steps: int) -> None:
    """Check that outer steps lower the method's own loss, with the same draws before and after."""
    if trial.method.needs.pixels:
        return  # it chooses, once
    method = trial.prepared()
    run = Run.of(method)
    draws = range(1000, 1005)  # those of no step of the run

    def loss(state: OuterState) -> float:
        """Measure under the first state of the method, which may be part of the loss."""
        on_blocks = run.on_blocks(method)
        losses = [on_blocks.estimate(state.leaves, run.first.method, draw).loss for draw in draws]
        return float(sum(losses) / len(losses))

    before, after = loss(run.first), loss(run.taken(method, run.first, steps))
    trial.part.must(
        f"lower its own loss in {steps} steps on a small problem",
        after < before,
        f"it went from {before:.4g} to {after:.4g}",
        protects="that the gradient is the loss's own, and of the right sign",
    )


def check_surroundings(trial: Trial) -> None:
    """Check what a method tells the recipe, the compiler and the report."""
    method = trial.prepared()
    state = method.start()[0]
    recipe = method.recipe(Recipe("mlp"), learned_of(method), state)
    trial.part.must(
        "give a Recipe from recipe()",
        isinstance(recipe, Recipe),
        f"got {type(recipe).__name__}",
        protects="that a set's file says how to train on it",
    )
    work = trial.method.work(trial.options, SIZES)
    trial.part.must(
        "give a Work from work()",
        isinstance(work, Work),
        f"got {type(work).__name__}",
        protects="--compile auto",
    )
    words = trial.method.words(trial.options)
    trial.part.must(
        "give a list of (term, value) texts from words()",
        isinstance(words, list) and all(map(is_pair_of_texts, words)),
        f"got {words!r}",
        protects="the report",
    )


def is_pair_of_texts(line: Any) -> bool:
    """Return whether a value is a tuple of two texts."""
    return (
        isinstance(line, tuple) and len(line) == 2 and all(isinstance(part, str) for part in line)
    )
