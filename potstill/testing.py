"""Contract checks for parts that users write, such as methods, networks and data sources.

    from potstill.testing import check_method
    check_method("mypackage.module:MyMethod")

Each check raises `ContractError` with one sentence: the part, the rule, what was found, and what
the rule protects. The same checks run over all of potstill's own parts in its tests.
"""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.config import configuration
from potstill.config.options import declared, may_be_auto, options_class
from potstill.config.sections import DataConfig
from potstill.data.splits import Dataset, Shape, TensorSplit
from potstill.distillation.boosting import LEARNED, Rates, Stage
from potstill.distillation.checkpoints import pack, unpack
from potstill.distillation.outer import Carried, Hooks, OuterState, Schedule, optimise
from potstill.distilled.examples import Block, Recipe
from potstill.engine.unroll import with_grad
from potstill.engine.when_to_compile import NetworkFamily
from potstill.files import canonical, load_tensors, save_tensors
from potstill.methods.base import Estimate, Examples, Problem, Real, Sizes, Work
from potstill.models import check_model as model_that_can_be_called
from potstill.models import fresh, resolve
from potstill.parameterisations.base import Budget, Parameterisation
from potstill.parameterisations.pixels import Pixels
from potstill.registry import METHODS, PARAMETERISATIONS, SOURCES, InputError
from potstill.seeds import generator

CPU = torch.device("cpu")
SHAPE, CLASSES, PER_CLASS, REAL = (1, 8, 8), 3, 2, 90
FAR = 0.6
"""Scale of the centres of the small problem's classes, in multiples of the noise around them."""


class ContractError(AssertionError):
    """A part breaks a rule that potstill relies on."""


def require(name: str, holds: bool, rule: str, found: str, protects: str) -> None:
    """Raise a ContractError unless a rule holds.

    Args:
        name: of the part.
        holds: whether the rule holds.
        rule: in words.
        found: what was found instead, in words.
        protects: what the rule protects, in words.
    """
    if not holds:
        raise ContractError(f"{name} {rule}, {found}; this protects {protects}")


def small_problem(seed: int = 0, shape: Shape = SHAPE, labels: Tensor | None = None) -> Problem:
    """Make a problem that takes seconds.

    Three classes of noisy images, each around its own centre, and an MLP.

    Args:
        seed: of all that is drawn.
        shape: of an example.
        labels: (n,) the classes of the distilled examples; None: two of each class.
    """
    rng = generator(seed, "small problem")
    centres = torch.randn(CLASSES, *shape, generator=rng) * FAR
    classes = torch.arange(REAL) % CLASSES
    images = centres[classes] + torch.randn(REAL, *shape, generator=rng)
    own = torch.arange(CLASSES).repeat_interleave(PER_CLASS) if labels is None else labels
    recipe = Recipe("mlp", width=16, lr=0.01, batch_per_class=PER_CLASS, classes_per_batch=CLASSES)
    factory = resolve("mlp", shape, CLASSES, width=16, depth=1)
    networks = NetworkFamily(factory, shape, CLASSES, CPU, "float32")
    real = Real(TensorSplit(images, classes), CLASSES, 30, (), 30)
    return Problem(real, networks, own, recipe, seed, CPU, 100, "small problem")


def small_examples(problem: Problem, learn_targets: bool = False, frozen: int = 0) -> Examples:
    """Make examples for a small problem: noise, and one-hot targets."""
    shape = problem.networks.shape
    images = torch.randn(len(problem.labels), *shape, generator=generator(0, "examples"))
    targets = torch.eye(problem.real.classes)[problem.labels]
    return Examples(images, targets, problem.labels, frozen, learn_targets)


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
    made: Any = METHODS[method] if isinstance(method, str) else method
    name = method if isinstance(method, str) else METHODS.name_of(made)
    task = problem or small_problem()
    check_description(name, made)
    check_options(name, made)
    chosen = options if options is not None else default_options(made)
    with tempfile.TemporaryDirectory() as folder:
        prepared = trial(name, made, task, chosen, Cache(Path(folder), ["contract", name]))
        check_replay(name, prepared)
        check_gradient(name, prepared)
        check_checkpoint(name, prepared, Path(folder) / "state.safetensors")
        check_progress(name, prepared, steps)
    check_surroundings(name, made, chosen, prepared())


def check_description(name: str, method: Any) -> None:
    """Check the attributes of a method that potstill reads before it makes an instance."""
    require(
        name, isinstance(method, type), "must be a class", f"got {type(method).__name__}",
        "that an instance can be made for each block of a boosted set",
    )  # fmt: skip
    for member in (
        "estimate",
        "start",
        "prepare",
        "recipe",
        "work",
        "words",
        "needs",
        "defaults",
        "remedy",
    ):
        require(
            name, hasattr(method, member), f"must have {member!r} (derive from "
                                           "potstill.methods.base.Method)",
            "it has none", "every call that a run makes",
        )  # fmt: skip
    known = {item.name for item, _ in declared(options_class(method))}
    reserved = set(configuration().flat()) - set(
        configuration(method="rat-bptt").tables()["method"]
    )
    taken = sorted(known & (reserved | {"method"}))
    require(
        name, not taken, "must name its options otherwise than the house's", "got "
                                                                             f"{', '.join(taken)}",
        "that every option is one flag",
    )  # fmt: skip
    house = set(configuration().flat()) | {
        "outer_momentum",
        "outer_weight_decay",
        "outer_milestones",
        "outer_decay",
    }
    strange = sorted(set(method.defaults) - house)
    require(
        name, not strange, "must name options of the house in defaults", "got "
                                                                         f"{', '.join(strange)}",
        "that what --help says holds",
    )  # fmt: skip


def check_options(name: str, part: Any) -> None:
    """Check a part's Options: a frozen dataclass of options with help texts."""
    options = options_class(part)
    params = getattr(options, "__dataclass_params__", None)
    require(
        name,
        params is not None and params.frozen,
        "must have a frozen dataclass of options",
        f"got {options.__name__}",
        "a run's identity, which options are part of",
    )
    known = list(declared(options))
    require(
        name,
        len(known) == len(dataclasses.fields(options)) or "Options" not in vars(part),
        "must declare every field of Options with potstill.config.options.option",
        "some are plain fields",
        "that each is a flag, a keyword and a key of a file",
    )
    for item, _ in known:
        require(
            name,
            bool(item.metadata["help"].strip()),
            f"must say what its option {item.name} is",
            "the help text is empty",
            "whoever reads --help",
        )


def default_options(part: Any) -> Any:
    """Make a part's default options, with every "auto" resolved for the small problem."""
    options = options_class(part)()
    sizes = Sizes(SHAPE, CLASSES, (PER_CLASS,), (CLASSES * PER_CLASS,), 100, 30, 30, 30)
    if hasattr(options, "resolved"):
        options = options.resolved(sizes)
    for item, hint in declared(type(options)):
        name = getattr(part, "__name__", str(part))
        require(
            name, not (may_be_auto(hint) and getattr(options, item.name) == "auto"),
            f"must replace 'auto' of {item.name} in Options.resolved(sizes)", "it is still there",
            "that a run stores what it did",
        )  # fmt: skip
    return options


def trial(
    name: str, method: Any, problem: Problem, options: Any, cache: Cache
) -> Callable[..., Any]:
    """Return a function that makes a prepared instance.

    It takes another `problem` than the trial's, if one is given.

    Args:
        name: of the method.
        method: the class.
        problem: the problem to run it on.
        options: an instance of its Options.
        cache: keeps what it prepares.
    """

    def prepared(own: Problem = problem) -> Any:
        made = method(own, options)
        made.prepare(cache)
        return made

    started = prepared().start()
    require(
        name, isinstance(started, tuple) and len(started) == 2, "must give (state, learnables) "
                                                                "from start()",
        f"got {type(started).__name__}", "what a checkpoint holds",
    )  # fmt: skip
    return prepared


def learned_of(method: Any) -> dict[str, Tensor]:
    """Return the first values of what a method learns beside the set."""
    return {name: one.value for name, one in method.start()[1].items()}


def estimated(
    name: str, method: Any, examples: Examples, state: Mapping[str, Any], step: int
) -> Estimate:
    """Estimate once, with the global generators seeded; no result may depend on that seed.

    Args:
        name: of the method.
        method: a prepared instance.
        examples: the distilled set.
        state: the method's state.
        step: number of the outer step.
    """
    result = method.estimate(examples, learned_of(method), state, step)
    require(
        name, isinstance(result, Estimate), "must give an Estimate from estimate()", "got "
                                                                                     f"{type(result).__name__}",
        "the outer loop",
    )  # fmt: skip
    return cast(Estimate, result)


def check_replay(name: str, prepared: Callable[..., Any]) -> None:
    """Check that a step repeats from (seed, step), and leaves its arguments unchanged."""
    task = prepared().problem
    examples = small_examples(task)
    for step in (0, 3):
        results = []
        for seed in (1, 2):
            method = prepared()
            state = method.start()[0]
            before = copy.deepcopy((examples, dict(state)))
            torch.manual_seed(seed)
            results.append(estimated(name, method, examples, state, step))
            require(
                name,
                same(before, (examples, dict(state))),
                "must not change the examples or the state that it is given",
                f"it does at step {step}",
                "that a step can be taken again",
            )
        require(
            name,
            same(*(dict(one.grads) for one in results))
            and same(*(torch.tensor(one.loss) for one in results)),
            "must draw everything from (seed, step), as problem.rng does",
            f"two estimates at step {step} differ",
            "that a resumed run gives the bytes of an undisturbed one",
        )


def check_gradient(name: str, prepared: Callable[..., Any]) -> None:
    """Check names, shapes and finiteness of the gradient, with some examples frozen too."""
    method = prepared()
    free = method.needs.targets == "free"
    for learn_targets in (False, True) if free else (False,):
        for frozen in (0, CLASSES):
            labels = method.problem.labels if not frozen else torch.arange(2 * CLASSES) % CLASSES
            own = prepared(dataclasses.replace(method.problem, labels=labels))
            examples = small_examples(own.problem, learn_targets, frozen)
            result = estimated(name, own, examples, own.start()[0], 0)
            known = {**examples.leaves, **learned_of(own)}
            strange = sorted(set(result.grads) - set(known))
            require(
                name,
                not strange,
                f"must give gradients of {', '.join(known)} only",
                f"got {', '.join(strange)}",
                "that each has a learning rate",
            )
            require(
                name, "images" in result.grads, "must give the gradient in the images", "there is "
                                                                                        "none",
                "that the set moves",
            )  # fmt: skip
            for of, grad in result.grads.items():
                shapes = f"got {tuple(grad.shape)} for {of} of {tuple(known[of].shape)}"
                require(
                    name,
                    grad.shape == known[of].shape,
                    "must give gradients like their tensors",
                    shapes,
                    "the outer step",
                )
                require(
                    name, bool(grad.isfinite().all()) and math.isfinite(result.loss),
                    "must give finite numbers on a small problem", f"the gradient of {of} or the "
                                                                   "loss is not",
                    "that a run is not made of skipped steps",
                )  # fmt: skip
            moving = result.grads["images"][frozen:]
            require(
                name,
                bool(moving.any()),
                "must give a gradient that is not 0",
                "all of it is",
                "that the set moves",
            )


def stage_of(task: Problem) -> tuple[Stage, Rates]:
    """Make a stage of one block of pixels for a small problem."""
    shape = task.networks.shape
    budget = Budget(shape, CLASSES, PER_CLASS)
    leaves = {"images": small_examples(task).images}
    rates = Rates(0.05, 0.05)
    return Stage((Block(leaves, Pixels(budget)),), rates), rates


def begun(
    method: Any, defaults: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], OuterState, Schedule]:
    """Return what the outer loop takes for a method on a small problem.

    The optimiser is the one that the method asks for.
    """
    stage, _ = stage_of(method.problem)
    wanted = {name: value for name, value in defaults.items() if name.startswith("outer_")}
    known = configuration(wanted)
    optimizer = known.outer_optimizer.options
    lr = 0.05 if known.outer.outer_lr == "auto" else float(known.outer.outer_lr)
    stage = dataclasses.replace(stage, rates=Rates(lr, lr))
    state, learnables = method.start()
    leaves = {**stage.learned, **{LEARNED + name: one.value for name, one in learnables.items()}}
    first = OuterState.start(leaves, state, optimizer, Carried())
    return stage, stage.rules(learnables), first, Schedule(6, optimizer)


def check_checkpoint(name: str, prepared: Callable[..., Any], path: Path) -> None:
    """Check that a run goes on from a written and read state as if without interruption."""
    method = prepared()
    stage, rules, state, schedule = begun(method, method.defaults)
    on_blocks = stage.on_blocks(method, CPU)
    half = optimise(on_blocks, dataclasses.replace(schedule, steps=3), rules, state, CPU, Hooks())
    whole = optimise(on_blocks, schedule, rules, half, CPU, Hooks())
    try:
        tensors, meta = pack(half)
        canonical(meta)
        save_tensors(path, tensors, "checkpoint", meta)
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"{name} must have a state of tensors and plain data, by names, {error}; this protects "
            "every checkpoint"
        ) from error
    tensors, meta = load_tensors(path, "checkpoint")
    other = stage.on_blocks(prepared(), CPU)
    resumed = optimise(other, schedule, rules, unpack(tensors, meta), CPU, Hooks())
    require(
        name, same(whole.leaves, resumed.leaves) and same(dict(whole.method), dict(resumed.method)),
        "must go on from a checkpoint as if nothing had happened", "another set came out",
        "that a resumed run gives the bytes of an undisturbed one",
    )  # fmt: skip


def check_progress(name: str, prepared: Callable[..., Any], steps: int) -> None:
    """Check that outer steps lower the method's own loss, with the same draws before and after."""
    method = prepared()
    stage, rules, state, schedule = begun(method, method.defaults)
    on_blocks = stage.on_blocks(method, CPU)

    def loss(leaves: Mapping[str, Tensor]) -> float:
        draws = range(1000, 1005)  # those of no step of the run
        losses = [on_blocks.estimate(leaves, state.method, draw).loss for draw in draws]
        return float(sum(losses) / len(losses))

    after = optimise(
        on_blocks, dataclasses.replace(schedule, steps=steps), rules, state, CPU, Hooks()
    )
    before, now = loss(state.leaves), loss(after.leaves)
    require(
        name, now < before, f"must lower its own loss in {steps} steps on a small problem",
        f"it went from {before:.4g} to {now:.4g}", "that the gradient is the loss's own, and of "
                                                   "the right sign",
    )  # fmt: skip


def check_surroundings(name: str, method: Any, options: Any, made: Any) -> None:
    """Check what a method tells the recipe, the compiler and the report.

    Args:
        name: of the method.
        method: the class.
        options: an instance of its Options.
        made: a prepared instance.
    """
    state, learnables = made.start()
    learned = {of: one.value for of, one in learnables.items()}
    recipe = made.recipe(Recipe("mlp"), learned, state)
    require(
        name, isinstance(recipe, Recipe), "must give a Recipe from recipe()", "got "
                                                                              f"{type(recipe).__name__}",
        "that a set's file says how to train on it",
    )  # fmt: skip
    sizes = Sizes(SHAPE, CLASSES, (PER_CLASS,), (CLASSES * PER_CLASS,), 100, 30, 30, 30)
    work = method.work(options, sizes)
    require(
        name,
        isinstance(work, Work),
        "must give a Work from work()",
        f"got {type(work).__name__}",
        "--compile auto",
    )
    words = method.words(options)
    fits = isinstance(words, list) and all(
        isinstance(line, tuple) and len(line) == 2 and all(isinstance(part, str) for part in line)
        for line in words
    )
    require(
        name,
        fits,
        "must give a list of (term, value) texts from words()",
        f"got {words!r}",
        "the report",
    )


def same(one: Any, other: Any) -> bool:
    """Return whether plain data and tensors are equal, bit for bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.shape == other.shape
            and bool(torch.isclose(one, other, 0, 0, True).all())
        )
    if isinstance(one, Mapping):
        return set(one) == set(other) and all(
            same(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return bool(one == other)


def check_parameterisation(parameterisation: str | type, options: Any = None) -> None:
    """Check that a parameterisation keeps to the contract of `potstill.parameterisations.base`.

    Args:
        parameterisation: its registered name, "package.module:Name", or the class.
        options: an instance of its Options; None: their defaults.
    Raises:
        ContractError: it breaks a rule.
    """
    made: Any = (
        PARAMETERISATIONS[parameterisation]
        if isinstance(parameterisation, str)
        else parameterisation
    )
    name = (
        parameterisation if isinstance(parameterisation, str) else PARAMETERISATIONS.name_of(made)
    )
    check_options(name, made)
    chosen = options if options is not None else options_class(made)()
    budget = Budget((3, 8, 8), CLASSES, 10)
    one: Parameterisation = made.fitting(budget, chosen)
    require(
        name, one.floats <= budget.floats, f"must store at most the budget's {budget.floats:,} "
                                           "numbers",
        f"it stores {one.floats:,}", "that accuracies at the same bytes compare",
    )  # fmt: skip
    starts = {"noise": one.noise(generator(0))}
    count = CLASSES * one.real_per_class
    real = torch.randn(count, *budget.shape, generator=generator(1))
    starts["from_real"] = one.from_real(real, generator(0))
    for way, leaves in starts.items():
        shapes = {of: tuple(leaf.shape) for of, leaf in leaves.items()}
        require(
            name, shapes == one.shapes, f"must make leaves of its shapes from {way}", "got "
                                                                                      f"{shapes} "
                                                                                      "for "
                                                                                      f"{one.shapes}",
            "checkpoints and the outer optimiser",
        )  # fmt: skip
        images = one.decode(leaves)
        wanted = (CLASSES * one.per_class, *budget.shape)
        require(
            name, tuple(images.shape) == wanted and bool(images.isfinite().all()),
            f"must decode to {wanted} finite numbers", f"got {tuple(images.shape)} from {way}",
            "that each example has the class of its place",
        )  # fmt: skip
        asked = with_grad(leaves)
        grads = torch.autograd.grad(
            one.decode(asked).square().sum(), list(asked.values()), allow_unused=True
        )
        missing = [of for of, grad in zip(asked, grads, strict=True) if grad is None]
        require(
            name, not missing, "must decode differentiably in every leaf", f"{', '.join(missing)} "
                                                                           "gets no gradient",
            "that all that is stored is learned",
        )  # fmt: skip
    require(
        name, same(starts["noise"], one.noise(generator(0))), "must draw its noise from the "
                                                              "generator that it is given",
        "two starts differ", "that a seed gives one set",
    )  # fmt: skip
    speeds = one.speeds
    require(
        name, set(speeds) == set(one.shapes) and all(speed > 0 for speed in speeds.values()),
        "must have a speed above 0 for each leaf", f"got {speeds}", "that every leaf moves",
    )  # fmt: skip
    plain = one.plain()
    try:
        canonical(plain)
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"{name} must have fields of plain data, {error}; this protects its file"
        ) from error
    again = made(budget, **{of: value for of, value in plain.items() if of not in ("kind", "ipc")})
    require(
        name,
        again == one,
        "must come back from plain()",
        f"got {again}",
        "that a set's file can be read",
    )


def check_model(
    model: str | Callable[..., nn.Module], shape: Shape = (3, 32, 32), classes: int = 10
) -> None:
    """Check that a network suits distillation by a method that differentiates it twice.

    Args:
        model: registered name, "package.module:factory", or a callable that makes a network.
        shape: of an input.
        classes: number of classes.
    Raises:
        ContractError: it breaks a rule.
    """
    from potstill.distillation.auto_values import check_second_derivative

    name = model if isinstance(model, str) else getattr(model, "__qualname__", "the model")
    try:
        factory = resolve(model, shape, classes)
        model_that_can_be_called(name, factory, shape, classes)
        check_second_derivative(name, factory, shape, classes)
    except InputError as error:
        raise ContractError(f"{error}; this protects every derivative") from error
    one, other = (
        {of: p.detach().clone() for of, p in fresh(factory, 5, CPU).named_parameters()}
        for _ in range(2)
    )
    require(
        name, same(one, other), "must start from torch's global generator alone", "two starts of a "
                                                                                  "seed differ",
        "that a resumed run gives the bytes of an undisturbed one",
    )  # fmt: skip


def check_source(
    source: str | Callable[..., Dataset], rest: str = "", config: DataConfig | None = None
) -> None:
    """Check that a data source gives what potstill reads.

    Args:
        source: its registered name, "package.module:function", or the function.
        rest: what follows the source's name in `--data NAME:rest`.
        config: options of data; None: their defaults.
    Raises:
        ContractError: it breaks a rule.
    """
    read: Any = SOURCES[source] if isinstance(source, str) else source
    name = source if isinstance(source, str) else getattr(read, "__qualname__", "the source")
    one, other = (read(rest, config or DataConfig()) for _ in range(2))
    require(
        name,
        isinstance(one, Dataset),
        "must give a Dataset",
        f"got {type(one).__name__}",
        "every run",
    )
    require(
        name, one.fingerprint == other.fingerprint and bool(one.fingerprint),
        "must give the same fingerprint for the same content", "two readings differ",
        "that a resumed run has the data that it began with",
    )  # fmt: skip
    for split, arrays in (("train", one.train), ("test", one.test)):
        if arrays is None:
            continue
        require(
            name, len(arrays.images) == len(arrays.labels) > 0, "must give a label for each image "
                                                                f"of {split}",
            f"got {len(arrays.images)} and {len(arrays.labels)}", "accuracy",
        )  # fmt: skip
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        require(
            name, low >= 0 and high < len(one.class_names), f"must have labels of {split} in 0 .. "
                                                            "K-1",
            f"got {low} to {high} for {len(one.class_names)} class names", "accuracy",
        )  # fmt: skip
        fits = str(arrays.images.dtype) in ("uint8", "float32")
        require(
            name,
            fits,
            "must give uint8 or float32",
            f"got {arrays.images.dtype}",
            "the scale of pixels",
        )
