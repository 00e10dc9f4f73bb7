"""All that a run needs, made from a configuration and data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.config import Given, Resolved, changed, decided
from potstill.config.sections import STARTED
from potstill.data.preparation import RealData, cut_of, prepare
from potstill.data.preprocessing import ZCA_UP_TO, Preprocess, auto_preprocessing
from potstill.data.splits import NOUNS, Dataset, kind_of, require_kind
from potstill.devices import bfloat16_cost, keep_freed_memory, pick_device
from potstill.distillation.auto_values import (
    first_norm,
    resolve_auto,
    resolve_compile,
    tested_networks,
)
from potstill.distillation.boosting import LEARNED, Rates, Stage, examples, with_leaves
from potstill.distillation.logs import require_log
from potstill.distillation.network_checks import factories
from potstill.distillation.option_checks import (
    check_batch,
    check_clamp,
    check_coupling,
    check_dealt,
    check_kinds,
    check_storable,
)
from potstill.distillation.outer import Carried, OuterState, Schedule
from potstill.distillation.outer_rates import Course
from potstill.distillation.packing import require_alike
from potstill.distillation.start import cautions_on_start, first_blocks, start_set
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.flat import couples_batch
from potstill.engine.when_to_compile import NetworkFamily
from potstill.evaluation.learners import Learner, TrainingSet
from potstill.evaluation.scoring import score_fits, score_set
from potstill.evaluation.training import TrainedNetwork, set_batches, train_network
from potstill.files import checksum, with_prefix
from potstill.methods.base import Method, Problem, Real, Sizes
from potstill.models import (
    DEFAULTS,
    ModelSpec,
    check_smallest_batch,
    fresh,
    model_name,
)
from potstill.parameterisations.base import Budget, Parameterisation
from potstill.progress import Listener
from potstill.registry import LEARNERS, METHODS, PARAMETERISATIONS
from potstill.seeds import derive
from potstill.workers import set_threads

SLOWER = 1.2
"""From this factor on it is said that an arithmetic is slow."""
METHOD_PATHS = ("set_images", "set_labels", "expert_folder")
"""Options of methods that are paths."""
PLACES = ("data", "cache_dir", *METHOD_PATHS, "storage", "device", "threads", "log")
"""Options that may differ between ranks: paths, devices, threads and logs."""


def settings(config: Given | Resolved, identity: str) -> dict[str, Any]:
    """Return what must be the same on all ranks: the data's hash, and options but `PLACES`."""
    options = {name: value for name, value in config.flat().items() if name not in PLACES}
    return {"the hash of the data": identity[:12], **options}


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs, made from a configuration and data.

    Args:
        config: the options, resolved.
        real: the data, preprocessed.
        blocks: as they are before distillation.
        method: its class.
        sizes: how large the run is.
        networks: makes the networks that the set is distilled with.
        tested: makes the networks that the set is for, which validation trains; mostly the same.
        device: where it computes.
        cache: keeps what the method prepares.
        listener: receives the progress.
        ranks: the processes that share the run.
        start: the set that the run starts from; None: noise or real examples.
        identity: names the data as networks read them, see `prepared_as`.
        kept: blocks of the start that the run keeps, and begins after.
        still: (n,) which examples of the one block are the start's, and stay; None: none.
    """

    config: Resolved
    real: RealData
    blocks: tuple[Block, ...]
    method: type[Method]
    sizes: Sizes
    networks: NetworkFamily
    tested: NetworkFamily
    device: torch.device
    cache: Cache
    listener: Listener
    ranks: Ranks = ALONE
    start: DistilledSet | None = None
    identity: str = ""
    kept: int = 0
    still: Tensor | None = None

    @property
    def kept_recipes(self) -> tuple[Any, ...]:
        """How networks train on each prefix of the blocks that are kept, as plain data."""
        if not (self.start and self.kept):
            return ()
        return tuple(self.start.prefix(ipc).recipe.plain() for ipc in self.start.budgets)

    @classmethod
    def of(
        cls,
        given: Given,
        dataset: Dataset,
        model: ModelSpec | None,
        listener: Listener,
        fitted: Preprocess | None = None,
        ranks: Ranks = ALONE,
    ) -> "Setup":
        """Resolve every "auto", prepare the data, and check the network.

        Args:
            given: the options.
            dataset: the real data, raw.
            model: a callable in place of the configuration's model.
            listener: receives the progress.
            fitted: the data's preprocessing, if it is known.
            ranks: the processes that share the run.
        """
        device = pick_device(given.run.device)
        require_log(given.run.log)
        if given.run.threads != "auto":
            set_threads(given.run.threads)
        keep_freed_memory()
        method: type[Method] = METHODS[given.method.name]
        check_dealt(given, method, ranks, listener.say)
        if given.model.name == "auto":
            given = decided(given, model=DEFAULTS[dataset.kind])
        start = start_set(given, dataset)
        if start:
            fitted = fitted or start.fitted
            own = start.metadata.config.get("preprocessing", {"preprocess": fitted.name})
            for caution in cautions_on_start(start, dataset, given.data):
                listener.say(f"note: {caution}")
            given = changed(given, **own, init=STARTED)
        if given.preprocessing.name == "auto":
            given = decided(given, preprocess=auto_preprocessing(dataset.shape))
        check_kinds(given, dataset.shape, given.model.name if model is None else model)
        shape, classes, noun = dataset.shape, len(dataset.class_names), NOUNS[dataset.kind]
        one = block_parameterisation(given, shape, classes)
        check_storable(given, method, one, noun)
        check_batch(given, one, classes)
        values = one.budget.values
        if fitted is None and values > ZCA_UP_TO and given.preprocessing.name == "zca":
            listener.say(f"fitting zca to {noun}s of {values:,} values takes minutes")
        check_clamp(given, one, dataset.kind)
        real = prepare(dataset, given.data, device, fitted or given.preprocessing)
        for note in (real.words, *real.notes):
            listener.say(note)
        for_tests, factory = factories(given, model, real.shape, classes, method)
        if couples_batch(fresh(factory, 0, torch.device("cpu"))):
            check_coupling(given, method, noun)
            listener.say(
                "the network has batch norm: batches are taken whole, and memory grows with the "
                "real batch"
            )
        config, sizes = resolve_auto(
            given, real, one, factory, mapped=dataset.mapped, device=device,
            first_norm=first_norm(given, real, start),
        )  # fmt: skip
        name = model_name(given.model.name if model is None else model)
        check_smallest_batch(name, factory, shape, min(*sizes.batches, sizes.real_batch))
        parts = [one] * config.distilled.boost_blocks
        blocks, kept, still = first_blocks(config, start, parts, real, device)
        if given.inner.precision == "bfloat16":
            warn_of_bfloat16(device, listener.say)
        networks = NetworkFamily(factory, real.shape, classes, device, config.inner.precision)
        config, compiled = resolve_compile(
            config, given.run.compile, method, sizes, networks, listener
        )
        networks = networks.with_compiled(compiled)
        tested = tested_networks(networks, for_tests, sizes.batches[-1], listener)
        identity = prepared_as(config, real)
        cache = method_cache(config, identity, listener)
        if ranks.count > 1:  # "auto", or what is fitted, may come out otherwise on another machine
            state = {name: tensor.cpu() for name, tensor in real.preprocess.state().items()}
            fit = {"the fitted preprocessing": checksum(state, {})[:12]}
            ranks.require_same({**settings(config, real.identity), **fit})
        made = cls(
            config, real, blocks, method, sizes, networks, tested, device, cache, listener, ranks,
            start, identity, kept, still,
        )  # fmt: skip
        problem = made.problem(Stage(blocks[:1], made.rates), Carried())
        method(problem, config.method.options).check(cache)
        return made

    @property
    def rates(self) -> Rates:
        """The outer learning rates."""
        outer = self.config.outer
        bounds = self.real.pixel_bounds(self.device) if outer.clamp else None
        by_scale = getattr(self.config.outer_optimizer.options, "scale_free", False)
        beta = self.config.distilled.boost_beta
        signed = self.method.needs.targets == "numbers"
        return Rates(outer.outer_lr, outer.label_lr, beta, bounds, by_scale, signed, self.still)

    @property
    def schedule(self) -> Schedule:
        """How many outer steps each stage takes, and with what optimiser."""
        outer = self.config.outer
        optimizer = self.config.outer_optimizer.options
        return Schedule(
            outer.steps, optimizer, outer.clip, outer.validate_every, outer.checkpoint_every,
            outer.average, Course(outer.outer_schedule, outer.warm_up),
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """How networks train on the set before a method changes it, for the first length."""
        return Recipe.of(self.config, self.lengths[0])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Candidate training lengths, ascending."""
        return tuple(sorted(set(self.config.evaluation.lengths)))

    def stage(self, state: OuterState | None) -> Stage:
        """Return the stage that a state belongs to, with the blocks as at its start.

        Without a state it is the first stage.
        """
        if state is None:
            return Stage(self.blocks[: self.kept + 1], self.rates)
        known = self.blocks[: state.carried.stage + 1]
        leaves = {**state.carried.earlier, **state.leaves}
        for number, block in enumerate(known):
            require_alike(with_prefix(leaves, f"{number}."), block.leaves, state.step)
        return Stage(with_leaves(known, leaves), self.rates)

    def problem(self, stage: Stage, carried: Carried) -> Problem:
        """Return what the method works on in a stage, with real batches drawn as a state says."""
        seed, number = self.config.run.seed, stage.number
        batch = self.sizes.batches[number]
        compiled = self.networks.compiled is not None
        sampling = self.config.real_sampler.options
        real = Real(
            self.real.train,
            len(self.real.class_names),
            self.config.outer.real_batch,
            self.config.inner.augment,
            self.sizes.real_micro_batch,
            sampling.sampler(carried.sampler, self.real.weights),
        )
        return Problem(
            real,
            self.networks,
            stage.labels,
            self.recipe,
            derive(seed, "block", number) if number else seed,
            self.device,
            self.sizes.cut.of_stage(batch, self.sizes.batch, compiled=compiled),
            self.identity,
            self.ranks,
            seed,
            self.blocks[0].parameterisation.sharing,
            self.sizes.cut,
            self.sizes.stages[-1],
            self.config.distilled.learn_labels,
            self.listener.say,
        )

    def make_method(self, stage: Stage, carried: Carried) -> Method:
        """Make the method for a stage and prepare it."""
        method = self.method(self.problem(stage, carried), self.config.method.options)
        method.prepare(self.cache)
        return method

    def begin(self, stage: Stage, method: Method, recipes: tuple[Any, ...] = ()) -> OuterState:
        """Make the outer loop's state before a stage's first step.

        Its moments and clip average are fresh: Algorithm 2 calls the distiller.
        """
        state, learnables = method.start()
        leaves = {LEARNED + name: one.value for name, one in learnables.items()}
        carried = Carried(stage.number, stage.earlier, recipes)
        optimizer = self.config.outer_optimizer.options
        averaged = stage.learned if self.config.outer.average else ()
        return OuterState.start({**stage.learned, **leaves}, state, optimizer, carried, averaged)

    def recipe_at(self, method: Method, leaves: Any, state: OuterState) -> Recipe:
        """Return how networks train on the set at these leaves, with what the method learned."""
        return method.recipe(self.recipe, with_prefix(leaves, LEARNED), state.method)

    @property
    def compiled_evaluation(self) -> CompiledNetwork | None:
        """The compiled derivatives, if networks are the same in training and evaluation.

        A method that compiles no gradients leaves none to train by.
        """
        if self.tested is not self.networks:
            return self.tested.compiled
        compiled = self.networks.compiled
        if not self.method.work(self.config.method.options, self.sizes).gradient_batches:
            return None
        return None if compiled is None or couples_batch(compiled.model.module) else compiled

    def validation_scores(
        self, blocks: tuple[Block, ...], recipe: Recipe, lengths: Sequence[int], **how: Any
    ) -> Tensor:
        """Measure networks trained on blocks on the validation split, with fixed seeds.

        Returns:
            (networks, lengths) accuracies, fractions.
        """
        both, labels = examples(blocks), torch.cat([block.labels for block in blocks])
        learner: type[Learner] = LEARNERS[recipe.learner]
        if not learner.trains:
            nets = self.config.evaluation.validation_nets if learner.random else 1
            given = TrainingSet(both["images"], both["targets"], labels)
            found = score_fits(
                learner.of(recipe, self.tested.factory, self.device), lambda own: given,
                self.real.validation, nets, derive(self.config.run.seed, "validation"), **how,
            )  # fmt: skip
            return found[:, None].expand(-1, len(lengths))
        return score_set(
            both["images"],
            both["targets"],
            labels,
            recipe,
            self.tested.factory,
            lengths=lengths,
            splits=(self.real.validation,),
            nets=self.config.evaluation.validation_nets,
            seed=derive(self.config.run.seed, "validation"),
            device=self.device,
            compiled=self.compiled_evaluation,
            ranks=self.ranks,
            **how,
        )[:, :, 0]

    def sampler_state(
        self, blocks: tuple[Block, ...], recipe: Recipe, stage: int, step: int
    ) -> Any:
        """Make a new state of the sampler of real images, from networks trained on the blocks.

        Args:
            blocks: the set.
            recipe: how the networks train on it.
            stage: index of the stage.
            step: outer step of the stage.
        """
        both, labels = examples(blocks), torch.cat([block.labels for block in blocks])

        def trained(own: int) -> TrainedNetwork:
            module = fresh(self.networks.factory, own, self.device)
            batch = set_batches(both["images"], both["targets"], labels, recipe, own)
            # Not run to its end, where the network goes back to training mode.
            predict = next(train_network(module, batch, recipe, (recipe.steps,), own))
            return TrainedNetwork(module, predict)

        seed = derive(self.config.run.seed, "hardness", stage, step)
        sampling = self.config.real_sampler.options
        return sampling.refresh(trained, self.real.train, seed, self.listener.work)


def warn_of_bfloat16(device: torch.device, say: Callable[[str], None]) -> None:
    """Say how slow bfloat16 is if it was asked for where it is slower than float32."""
    factor = bfloat16_cost(device)
    if factor > SLOWER:
        say(
            f"bfloat16 takes {factor:.1f} times as long as float32 on this CPU, which has no "
            "instructions for it; leave --precision at auto"
        )


def block_parameterisation(config: Given | Resolved, shape: Any, classes: int) -> Parameterisation:
    """Make the parameterisation of each block.

    Raises:
        InputError: the budget or an option does not fit the images.
    """
    name = config.parameterisation.name
    chosen: type[Parameterisation] = PARAMETERISATIONS[name]
    require_kind(kind_of(tuple(shape)), f"parameterisation {name}", chosen, "use --param pixels")
    distilled = config.distilled
    budget = Budget(tuple(shape), classes, distilled.ipc_of_block, distilled.learn_labels)
    return chosen.fitting(budget, config.parameterisation.options)


def prepared_as(config: Resolved, real: RealData) -> str:
    """Return a text key of the data as networks read them, the fitted preprocessing included."""
    return f"{cut_of(config, real.identity)} {checksum(real.preprocess.state(), {})[:12]}"


def method_cache(config: Resolved, identity: str, listener: Listener) -> Cache:
    """Make the cache of what the method prepares for these data and its options."""
    folder = config.data.cache_dir or platformdirs.user_cache_path("potstill")
    base = [identity, config.tables()["method"]]
    return Cache(Path(folder) / "prepared", base, listener)
