"""How good a set is: what fresh networks, or another learner, learn from it, on real data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from potstill.data.preparation import RealData
from potstill.data.splits import NOUNS
from potstill.devices import hardware, own_torch_state, pick_device, versions
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.when_to_compile import NetworkFamily, compiled_for_training
from potstill.errors import InputError
from potstill.evaluation.bench import CHOOSING_NETS, Bench, FitBench, recipe_under
from potstill.evaluation.protocols import VALIDATION, EvaluationOptions, Protocol
from potstill.evaluation.records import DataSource, EvaluationRecord, Row
from potstill.evaluation.scoring import Progress, factory_for, score_set
from potstill.models import ModelSpec, model_name
from potstill.progress import ignore
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS, PROTOCOLS
from potstill.seeds import derive

RATES = (1.0, 0.3)
"""Learning rates that another network is tried with, in multiples of the recipe's."""
LENGTHS = (300, 600, 1000)
Say = Callable[[str], None]
"""Takes a sentence that the user should see."""


def silent(sentence: str) -> None:
    """Ignore a sentence."""


@own_torch_state()
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
    if options.baselines and not len(real.train):
        raise InputError(
            f"the baseline {options.baselines[0]} trains on real {NOUNS[real.kind]}s, all that are "
            "given are tested on; give data with a train and a test split, or leave it out"
        )
    name = options.learner
    if name == "auto":
        protocol: Protocol = PROTOCOLS[options.protocol]
        name = protocol.recipe.get("learner", distilled.recipe.learner)
    if LEARNERS[name].trains:
        training = Training(distilled, options, model, lengths, name)
        return by_networks(training, real, progress, say, ranks)
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


@dataclass(frozen=True)
class Training:
    """How networks train in an evaluation: by the set's recipe, under a protocol, as options say.

    Args:
        distilled: the set.
        options: what is measured, and how.
        model: another network than the recipe's.
        lengths: candidates for a choice on validation data.
        learner: what trains them.
    """

    distilled: DistilledSet
    options: EvaluationOptions
    model: ModelSpec | None
    lengths: Sequence[int]
    learner: str = "network"

    @property
    def protocol(self) -> Protocol:
        """The protocol."""
        chosen: Protocol = PROTOCOLS[self.options.protocol]
        return chosen

    @property
    def own(self) -> bool:
        """Whether the network is the recipe's."""
        return self.model is None or self.model == self.distilled.recipe.model

    @property
    def recorded(self) -> bool:
        """Whether the length is the one that was chosen when distilling."""
        automatic = self.options.steps == "auto"
        as_then = self.own and self.learner == self.distilled.recipe.learner
        return as_then and self.protocol == VALIDATION and automatic

    @property
    def searched(self) -> tuple[int, ...]:
        """The lengths to choose from, or the one that is given."""
        if self.options.steps == "auto":
            return self.protocol.candidates or tuple(sorted(self.lengths))
        return (int(self.options.steps),)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to choose from; empty: the recipe's is taken."""
        chosen = self.options.lr == "auto" and self.protocol.chosen_on == "validation"
        lr = self.distilled.recipe.lr
        return tuple(factor * lr for factor in RATES) if chosen and not self.own else ()

    @property
    def count(self) -> int:
        """How many networks train: for each row, and to choose its learning rate."""
        nets = self.options.nets
        rows = 1 + ("random" in self.options.baselines)
        return rows * (nets + len(self.rates) * min(nets, CHOOSING_NETS))

    @property
    def chooses(self) -> bool:
        """Whether something is chosen on validation data."""
        lengths = () if self.recorded or self.protocol.fixed else self.searched
        on_validation = self.protocol.chosen_on == "validation"
        return bool(self.rates) or (on_validation and len(lengths) > 1)

    @property
    def plain(self) -> Recipe:
        """The set's recipe without a protocol."""
        return self.at_rate(self.distilled.recipe)

    def recipe(self, examples: int) -> Recipe:
        """Return the recipe for so many examples under the protocol."""
        return self.at_rate(recipe_under(self.protocol, self.distilled.recipe, examples))

    def at_rate(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the learner, and with the learning rate that is given, if one is."""
        lr = recipe.lr if self.options.lr == "auto" else self.options.lr
        return dataclasses.replace(recipe, learner=self.learner, lr=lr)

    def steps(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the lengths to try under the protocol; `recipe` has the protocol's own."""
        return (recipe.steps,) if self.protocol.fixed else self.searched


def by_networks(
    training: Training, real: RealData, progress: Progress | None, say: Say, ranks: Ranks
) -> list[Row]:
    """Evaluate by networks that train for a number of steps.

    Args:
        training: how they train.
        real: the data.
        progress: called as networks finish.
        say: takes a sentence that the user should see.
        ranks: the processes that share the networks.
    """
    distilled, options, classes = training.distilled, training.options, len(real.class_names)
    recipe, device = training.recipe(len(distilled)), pick_device(options.device)
    if training.chooses and not len(real.validation):
        raise InputError(
            "the number of steps and the learning rate of another network are chosen on validation "
            f"{NOUNS[real.kind]}s, all that are given are tested on; give --steps and --lr"
        )
    factory, model = factory_for(distilled, training.model), training.model
    lengths = (recipe.steps,) if training.recorded else training.steps(recipe)
    networks = NetworkFamily(factory, distilled.shape, classes, device, recipe.precision)
    compiled = compiled_for(
        networks,
        batch_of(recipe, len(distilled)),
        "off" if LEARNERS[training.learner].signed else options.compile,  # of cross-entropy alone
        training.count * lengths[-1],
        training.count * len(lengths) * len(real.test),
        say,
        progress,
    )
    bench = Bench(
        real,
        factory,
        recipe,
        model_name(recipe.model if model is None else model),
        options.nets,
        derive(options.seed, "test"),
        device,
        compiled,
        progress,
        training.rates,
        training.protocol,
        ranks,
    )
    row = bench.of_set("distilled", distilled, lengths)
    if training.recorded:
        chosen = distilled.metadata.accuracy is not None
        words = "steps chosen on validation data when distilling" if chosen else "the set's steps"
        row = dataclasses.replace(row, protocol=words)
    rows = [row]
    if "random" in options.baselines:
        under = training.recipe(distilled.ipc * classes)
        beside = dataclasses.replace(bench, recipe=under)
        rows.append(beside.of_random("random", distilled.ipc, training.steps(under)))
    if "full" in options.baselines:
        plain = training.plain
        same = compiled if plain.precision == recipe.precision else None
        whole = dataclasses.replace(bench, recipe=plain, protocol=VALIDATION, compiled=same)
        rows.append(whole.of_all("full", options.full_epochs, distilled.ipc))
    return rows


def batch_of(recipe: Recipe, examples: int) -> int:
    """Return how many examples a training step takes of so many."""
    if recipe.batch_size:
        return min(recipe.batch_size, examples)
    return recipe.batch_per_class * recipe.classes_per_batch


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
    networks: NetworkFamily,
    count: int,
    wanted: str,
    steps: int,
    tested: int,
    say: Say,
    progress: Progress | None = None,
) -> CompiledNetwork | None:
    """Return compiled derivatives if they are wanted or save time; None otherwise.

    Args:
        networks: whose.
        count: examples in a training step.
        wanted: "on", "off" or "auto".
        steps: training steps of all networks.
        tested: test images of all networks.
        say: hears why not.
        progress: called as functions are compiled.
    """

    def work() -> float:
        return (count * steps + tested / 3) * networks.operations()

    return compiled_for_training(networks, count, wanted, work, say, progress or ignore)


@own_torch_state()
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
    on = pick_device(device)
    factory, recipe = factory_for(distilled, None), distilled.recipe
    figures = []
    for label, images in (("the set", distilled.images), ("the pictures", pictures)):
        scores = score_set(
            images.to(on),
            distilled.targets.to(on),
            distilled.labels.to(on),
            recipe,
            factory,
            lengths=(recipe.steps,),
            splits=(real.validation,),
            nets=nets,
            seed=derive(seed, "export"),
            device=on,
            progress=progress,
            label=f"networks on {label}",
        )
        figures.append(Figure.of(scores[:, 0, 0]))
    return figures[0], figures[1]
