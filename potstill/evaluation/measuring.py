"""How good a set is: what fresh networks, or another learner, learn from it, on real data."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor

from potstill.config.sections import DataConfig
from potstill.data.preparation import RealData, prepare
from potstill.data.splits import NOUNS, Dataset
from potstill.devices import hardware, pick_device, versions
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.losses import couples_batch, even
from potstill.engine.when_to_compile import NetworkFamily, compiled_if_worth, compiled_networks
from potstill.evaluation.bench import Bench, FitBench, recipe_under
from potstill.evaluation.protocols import VALIDATION, EvaluationOptions
from potstill.evaluation.records import DataSource, EvaluationRecord, Row
from potstill.evaluation.scoring import Progress, factory_for, score_set
from potstill.models import ModelSpec, model_name
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS, PROTOCOLS, InputError
from potstill.seeds import derive

RATES = (1.0, 0.3)
"""Learning rates that another network is tried with, in multiples of the recipe's."""
LENGTHS = (300, 600, 1000)
Say = Callable[[str], None]
"""Takes a sentence that the user should see."""


def silent(sentence: str) -> None:
    """Ignore a sentence."""


def evaluate(
    distilled: DistilledSet,
    real: RealData,
    options: EvaluationOptions | None = None,
    *,
    model: ModelSpec | None = None,
    lengths: Sequence[int] = LENGTHS,
    progress: Progress | None = None,
    say: Say = silent,
    ranks: Ranks = ALONE,
) -> list[Row]:
    """Measure the test accuracy of what learns from the set and, if asked for, from real data.

    Args:
        distilled: the set.
        real: data that went through the set's own preprocessing (see `fitting`).
        options: what is measured, and how; but for `models`, which are taken one at a time.
        model: another network than the recipe's.
        lengths: candidates for a choice on validation data: for another model, and for baselines.
        progress: called as networks finish.
        say: takes a sentence that the user should see.
        ranks: the processes that share the networks; each gets all rows.
    Returns:
        One row for the set and one for each baseline.
    Raises:
        InputError: a model that does not fit, or options that have no effect on the learner.
    """
    options = options or EvaluationOptions()
    name = distilled.recipe.learner if options.learner == "auto" else options.learner
    if LEARNERS[name].trains:
        return by_networks(distilled, real, options, model, lengths, progress, say, ranks)
    return by_fits(distilled, real, options, model, name, progress)


def by_fits(
    distilled: DistilledSet,
    real: RealData,
    options: EvaluationOptions,
    model: ModelSpec | None,
    name: str,
    progress: Progress | None,
) -> list[Row]:
    """Evaluate by the learner called `name`, which trains no networks.

    The other arguments are as for `evaluate`.

    Raises:
        InputError: options that act on networks only.
    """
    unused = EvaluationOptions()
    for option in ("models", "protocol", "steps", "lr", "compile"):
        value = getattr(options, option) if option != "models" else options.models or model
        if value not in (getattr(unused, option), None):
            raise InputError(
                f"{option} has no effect on the learner {name}, which trains no networks, got "
                f"{value}; leave it out"
            )
    made = LEARNERS[name].of(
        distilled.recipe, factory_for(distilled, None), pick_device(options.device)
    )
    bench = FitBench(real, made, name, options.nets, derive(options.seed, "test"), progress)
    rows = [bench.of_set("distilled", distilled)]
    if "random" in options.baselines:
        rows.append(bench.of_random("random", distilled.ipc))
    if "full" in options.baselines:
        rows.append(bench.of_all("full", distilled.ipc))
    return rows


def by_networks(
    distilled: DistilledSet,
    real: RealData,
    options: EvaluationOptions,
    model: ModelSpec | None,
    lengths: Sequence[int],
    progress: Progress | None,
    say: Say,
    ranks: Ranks,
) -> list[Row]:
    """Evaluate by networks that train for a number of steps; arguments as for `evaluate`."""
    device, protocol, given = (
        pick_device(options.device),
        PROTOCOLS[options.protocol],
        distilled.recipe,
    )
    own, factory = model is None or model == given.model, factory_for(distilled, model)

    def at_rate(recipe: Recipe) -> Recipe:
        return recipe if options.lr == "auto" else dataclasses.replace(recipe, lr=options.lr)

    def recipe_for(examples: int) -> Recipe:
        return at_rate(recipe_under(protocol, given, examples))

    searched = (
        protocol.candidates or tuple(sorted(lengths))
        if options.steps == "auto"
        else (int(options.steps),)
    )
    recorded = own and protocol == VALIDATION and options.steps == "auto"
    recipe, taught = recipe_for(len(distilled)), at_rate(given)
    first = (recipe.steps,) if protocol.epochs or recorded else searched
    networks = NetworkFamily(
        factory, distilled.shape, len(distilled.class_names), device, recipe.precision
    )
    tested = options.nets * len(first) * len(real.test)
    count = (
        min(recipe.batch_size, len(distilled))
        if recipe.batch_size
        else recipe.batch_per_class * recipe.classes_per_batch
    )
    compiled = compiled_for(networks, count, options.compile, options.nets * first[-1], tested, say)
    chosen_rate = not own and options.lr == "auto" and protocol.chosen_on == "validation"
    bench = Bench(
        real,
        factory,
        recipe,
        model_name(given.model if model is None else model),
        options.nets,
        derive(options.seed, "test"),
        device,
        compiled,
        progress,
        tuple(factor * given.lr for factor in RATES) if chosen_rate else (),
        protocol,
        ranks,
    )
    rows = [bench.of_set("distilled", distilled, first)]
    if recorded:
        rows[0] = dataclasses.replace(
            rows[0], protocol="steps chosen on validation data when distilling"
        )
    if "random" in options.baselines:
        under = recipe_for(distilled.ipc * len(distilled.class_names))
        beside = dataclasses.replace(bench, recipe=under)
        rows.append(
            beside.of_random(
                "random", distilled.ipc, (under.steps,) if protocol.epochs else searched
            )
        )
    if "full" in options.baselines:
        same = compiled if taught.precision == recipe.precision else None
        whole = dataclasses.replace(bench, recipe=taught, protocol=VALIDATION, compiled=same)
        rows.append(whole.of_all("full", options.full_epochs, distilled.ipc))
    return rows


def record_of(
    rows: Sequence[Row],
    options: EvaluationOptions,
    model: str | None,
    ipc: int,
    source: str,
    real: RealData,
) -> EvaluationRecord:
    """Return the entry of evaluation.json for what `evaluate` measured, on this machine, now.

    Args:
        rows: what was measured.
        options: how.
        model: the network, if it is another than the recipe's.
        ipc: of the set.
        source: the kind of the data.
        real: the data.
    """
    return EvaluationRecord(
        tuple(rows),
        "test",
        len(real.test),
        NOUNS[real.kind],
        len(real.class_names),
        DataSource(real.fingerprint, source),
        options.settings(model, ipc),
        options.as_meant and model is None,
        hardware(pick_device(options.device)),
        versions(),
    )


def compiled_for(
    networks: NetworkFamily, count: int, wanted: str, steps: int, tested: int, say: Say
) -> CompiledNetwork | None:
    """Return compiled derivatives if they are wanted or save time; None otherwise.

    Args:
        networks: whose.
        count: examples in a training step.
        wanted: "on", "off" or "auto".
        steps: training steps of all networks.
        tested: test images of all networks.
        say: hears why not.
    """

    def build() -> CompiledNetwork:
        return compiled_networks(networks, [even(count, networks.most)], [], [networks.most], say)

    def work() -> float:
        return (count * steps + tested / 3) * networks.operations()

    batch_norm = couples_batch(networks.model(0).module)
    obstacle = (
        "batch norm is another function in evaluation than in training" if batch_norm else None
    )
    return compiled_if_worth(wanted, networks.device, work, build, say, obstacle)


def fitting(distilled: DistilledSet, dataset: Dataset, config: DataConfig, device: str) -> RealData:
    """Return `dataset` through the set's own preprocessing.

    Args:
        distilled: the set.
        dataset: the real data, raw.
        config: how the data are read and split.
        device: where the data go.
    Raises:
        InputError: the shape, classes or features are not the set's.
    """
    shape = dataset.shape
    if "vector" in (dataset.kind, distilled.kind) and shape != distilled.shape:
        wanted, got = (
            f"{one[0]} features" if len(one) == 1 else f"images of shape {one}"
            for one in (distilled.shape, shape)
        )
        raise InputError(
            f"the data must have {wanted} like the distilled set, got {got}; give the data that it "
            "was distilled from"
        )
    if shape != distilled.shape:
        raise InputError(
            f"the data must have images of shape {distilled.shape} like the distilled set, got "
            f"{shape}; try --image-size"
        )
    if dataset.class_names != distilled.class_names:
        pairs = zip(dataset.class_names, distilled.class_names, strict=False)
        found, wanted = next(
            (pair for pair in pairs if pair[0] != pair[1]), ("another number", "all")
        )
        raise InputError(
            f"the data must have the {len(distilled.class_names)} classes of the distilled set, in "
            f"its order, got {len(dataset.class_names)}; the first that differs is {found!r} in "
            f"place of {wanted!r}"
        )
    named, own = dataset.feature_names, distilled.feature_names
    if named and own and named != own:
        got, first = next(pair for pair in zip(named, own, strict=True) if pair[0] != pair[1])
        raise InputError(
            "the data must have the features of the distilled set, in its order; the first that "
            f"differs is {got!r} in place of {first!r}"
        )
    return prepare(dataset, config, pick_device(device), distilled.fitted)


def accuracy_of_export(
    distilled: DistilledSet,
    pictures: Tensor,
    real: RealData,
    *,
    nets: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Figure, Figure]:
    """Compare networks trained on a set with networks trained on its exported pictures.

    Args:
        distilled: the set.
        pictures: (n, C, H, W) the exported images, preprocessed.
        real: the real data.
        nets: networks for each of the two.
        seed: of the networks.
        device: where to train.
        progress: called after each network.
    Returns:
        Validation accuracy by the recipe, on the set and on `pictures`.
    """
    place = pick_device(device)
    factory, recipe = factory_for(distilled, None), distilled.recipe
    figures = []
    for label, images in (("the set", distilled.images), ("the pictures", pictures)):
        scores = score_set(
            images.to(place),
            distilled.targets.to(place),
            distilled.labels.to(place),
            recipe,
            factory,
            lengths=(recipe.steps,),
            splits=(real.validation,),
            nets=nets,
            seed=derive(seed, "export"),
            device=place,
            progress=progress,
            label=f"networks on {label}",
        )
        figures.append(Figure.of(scores[:, 0, 0]))
    return figures[0], figures[1]
