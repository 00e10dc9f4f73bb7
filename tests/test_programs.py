"""An unroll as programs on tensors that stay where they are: the same numbers as `Unrolled`, and
nothing in an outer step that waits for the device. There is no GPU here: programs are called, and
a stand-in for one refuses every read by the host.
"""

from dataclasses import replace

import pytest
import torch
from test_unrolled import EXAMPLES, SHAPE, problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twins import CPU

from potstill.data import augmentation
from potstill.data.splits import TensorSplit
from potstill.distillation.leaf_rules import Rule
from potstill.distillation.outer import Carried, OuterState, Schedule, outer_step
from potstill.distillation.step_log import Reader
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.drawn import Drawn
from potstill.engine.flat import FlatModel
from potstill.engine.moves import CompiledOptimizer, Moves, directly
from potstill.engine.optimizers import SGD, AdaBelief, Adam
from potstill.engine.programs import Called
from potstill.engine.unroll import optimizer_transpose
from potstill.engine.when_to_compile import NetworkFamily, missing_compiler
from potstill.evaluation import scoring
from potstill.evaluation.on_device import can_be_programs, courses
from potstill.evaluation.training import SetBatches, train_network
from potstill.methods import unrolled
from potstill.methods.base import Examples
from potstill.methods.one_unroll import Replay, Start, Unroll
from potstill.models import fresh, resolve
from potstill.seeds import generator

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.unique_dim.default,
    aten._unique2.default,
}
"""Operations whose result, or its size, the host must wait for."""


class Refusing(TorchDispatchMode):
    """A stand-in for a GPU: what is computed from `device` tensors must not be read by the host."""

    def __init__(self, *device: Tensor):
        super().__init__()
        self.storages: set[int] = set()
        self.kept: list[Tensor] = []
        for tensor in device:
            self.hold(tensor)

    def hold(self, tensor: Tensor) -> None:
        self.storages.add(tensor.untyped_storage()._cdata)
        self.kept.append(tensor)  # so that no address is used twice

    def of_device(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        flat = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        given = [one for one in flat if isinstance(one, Tensor)]
        touched = any(map(self.of_device, given))
        if touched and function in READS:
            raise AssertionError(f"the host waits for the device: {function}")
        made = function(*args, **(kwargs or {}))
        if touched:
            for one in torch.utils._pytree.tree_leaves(made):
                if isinstance(one, Tensor):
                    self.hold(one)
        return made


def captured(task, **options):
    """A RaT-BPTT whose trajectories are programs, called."""
    method = unrolled.RatBptt(
        task, unrolled.RatBptt.Options(**{"unroll": 6, "window": 3, **options})
    )
    method.__dict__["make_runner"] = Called
    return method


def plain(task, **options):
    """The same by `Unrolled`."""
    return unrolled.RatBptt(task, unrolled.RatBptt.Options(**{"unroll": 6, "window": 3, **options}))


def even(**options):
    """The problem with a real batch that its parts divide: then not a bit differs."""
    task = problem(**options)
    return replace(task, real=replace(task.real, micro_batch=5))


def double(task):
    """The problem in float64."""
    factory, train = task.networks.factory, task.real.train
    networks = replace(task.networks, factory=lambda: factory().double())
    real = replace(task.real, train=TensorSplit(train.images.double(), train.labels))
    return replace(task, networks=networks, real=real)


@pytest.mark.parametrize("trajectories", [1, 3])
@pytest.mark.parametrize(
    "optimizer", [Adam(), SGD(0.5, milestones=(2, 4), decay=0.5, restart=True)]
)
def test_programs_give_what_an_unroll_gives_step_after_step(trajectories, optimizer):
    task = even()
    augment = ("rotate", "flip+crop", "color")
    task = replace(task, recipe=replace(task.recipe, augment=augment, optimizer=optimizer))
    frozen = Examples(EXAMPLES.images, EXAMPLES.targets, EXAMPLES.labels, 1, learn_targets=True)
    options = {"trajectories": trajectories, "learn_lr": True}
    fast, slow = captured(task, **options), plain(task, **options)
    state, learnables = slow.start()
    learned = {"log_lr": learnables["log_lr"].value}
    windows = set()
    for step in range(6):  # the same tensors are used again
        own, expected = (one.estimate(frozen, learned, state, step) for one in (fast, slow))
        assert torch.equal(own.loss, expected.loss)
        for name, grad in expected.grads.items():
            rows = slice(1, None) if grad.dim() else ...  # frozen rows mean nothing
            assert torch.equal(own.grads[name][rows], grad[rows]), name
        assert torch.equal(own.info["image_grad_norm"], expected.info["image_grad_norm"])
        windows.add(expected.info["burn_in"])
    assert len(windows) > 2
    assert len(fast.slots) == trajectories


def test_in_float64_they_agree_where_the_last_part_is_filled_up():
    task = double(problem())  # 20 real images in parts of 7
    examples = replace(EXAMPLES, images=EXAMPLES.images.double(), targets=EXAMPLES.targets.double())
    own, expected = (
        one.estimate(examples, {}, {"window": {}}, 4) for one in (captured(task), plain(task))
    )
    torch.testing.assert_close(own.grads["images"], expected.grads["images"], rtol=1e-12, atol=0)
    torch.testing.assert_close(own.loss.double(), expected.loss.double(), rtol=1e-12, atol=0)


def test_compiled_derivatives_and_rounded_ones_run_in_programs():
    for precision in ("float32", "bfloat16"):
        task = even(precision=precision)
        traced = CompiledNetwork(task.networks.model(0), backend="eager")
        task = replace(task, networks=task.networks.with_compiled(traced))
        own, expected = (
            one.estimate(EXAMPLES, {}, {"window": {}}, 4) for one in (captured(task), plain(task))
        )
        assert torch.equal(own.grads["images"], expected.grads["images"])


def test_data_that_are_elsewhere_go_through_a_batch_on_the_device():
    task = even()
    train = task.real.train

    class Elsewhere:
        labels = train.labels

        def __len__(self):
            return len(train)

        def take(self, indices):
            return train.take(indices)

    other = replace(task, real=replace(task.real, train=Elsewhere()))
    own, expected = (
        captured(one).estimate(EXAMPLES, {}, {"window": {}}, 4) for one in (other, task)
    )
    assert torch.equal(own.grads["images"], expected.grads["images"])


RULES = {"images": Rule(0.1, clipped=True)}


class OnImages:
    """A method as the outer loop calls it."""

    def __init__(self, method):
        self.method, self.remedy = method, method.remedy

    def estimate(self, leaves, state, step):
        examples = replace(EXAMPLES, images=leaves["images"])
        return self.method.estimate(examples, {}, state, step)


def test_nothing_in_an_outer_step_waits_for_the_device():
    task = even()
    task = replace(task, recipe=replace(task.recipe, augment=("crop", "scale", "cutout")))
    method = OnImages(captured(task, trajectories=2))
    schedule = Schedule(10, clip=2.0, average=0.9)
    state = OuterState.start(
        {"images": EXAMPLES.images}, {"window": {}}, Adam(), Carried(), ["images"]
    )
    device = [task.real.train.images, *state.leaves.values(), *state.averaged.values()]
    tell = []
    with Refusing(*device) as stand_in:
        for _ in range(3):
            state, told = outer_step(method, schedule, RULES, state)
            tell.append(told)
        assert stand_in.of_device(state.leaves["images"])
        assert stand_in.of_device(state.updates)
        with pytest.raises(AssertionError, match="the host waits"):
            float(state.clip_average)
        with pytest.raises(AssertionError, match="the host waits"):
            torch.nonzero(state.leaves["images"])
    reader = Reader("", CPU)
    assert [reader.read(told).step for told in tell] == [1, 2, 3]
    assert state.settled.updates == 3


def test_a_window_that_follows_the_loss_waits_and_others_do_not():
    for method in (unrolled.Forward, unrolled.Backward):
        assert method.Options(unroll=60, window=3).watches
    for method in (unrolled.RatBptt, unrolled.Bptt, unrolled.Growing, unrolled.TBptt):
        assert not method.Options().watches


def test_what_draws_or_decides_anew_has_no_recording():
    assert plain(problem()).make_runner is None  # on a CPU
    drawing = NetworkFamily(
        lambda: torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3)
        ),
        SHAPE, 3, CPU, "float32",
    )  # fmt: skip
    still = NetworkFamily(resolve("convnet", SHAPE, 3, width=8, depth=1), SHAPE, 3, CPU, "float32")
    assert drawing.draws_random
    assert not still.draws_random


def test_a_draw_is_that_of_the_step_that_the_counter_tells():
    drawn = Drawn.empty(4, 3, ("flip", "crop+color"), CPU)
    rng = generator(0)
    rows = torch.randint(9, (4, 3), generator=rng)
    draws = [augmentation.draw((one,), 3, rng) for one in ("flip", "crop+color", "flip", "flip")]
    drawn.put(rows, draws, [0, 1, 2, 0])
    for step, expected in enumerate(draws):
        own, found, frozen = drawn.at(torch.tensor(step), step)
        assert torch.equal(own, rows[step])
        assert (found.operation, frozen) == (expected.operation, [0, 1, 2, 0][step])
        assert torch.equal(found.values, expected.values)


class Failing(Called):
    """Fails at its third program, as a recording may."""

    def __init__(self):
        self.keys = []

    def __call__(self, key, program, changed):
        self.keys.append(key)
        if len(self.keys) == 3:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        super().__call__(key, program, changed)


def test_what_cannot_be_recorded_is_launched_and_said_once():
    said = []
    task = replace(even(), say=said.append)
    method = captured(task)
    method.__dict__["make_runner"] = Failing
    expected = plain(task)
    for step in (4, 5):
        own, other = (
            one.estimate(EXAMPLES, {}, {"window": {}}, step) for one in (method, expected)
        )
        assert torch.equal(own.grads["images"], other.grads["images"])
    assert said == [
        "the steps are launched one by one, since recording them fails (operation not permitted "
        "when stream is capturing)"
    ]


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="there is no C++ compiler")
@pytest.mark.parametrize("optimizer", [Adam(), SGD(0.9, 1e-3, (2,), 0.5)])
def test_an_optimisers_step_and_its_way_back_are_the_same_compiled(optimizer):
    """As a GPU runs them: one or two kernels that change what they are given."""
    compiled = CompiledNetwork(FlatModel(torch.nn.Linear(3, 2)))
    found = []
    for call in (directly, compiled.keyed):
        rng = generator(0)

        def draw(*shape: int, rng: torch.Generator = rng) -> Tensor:
            return torch.rand(shape, generator=rng, dtype=torch.float64)

        state = tuple(draw(50) for _ in optimizer.init(torch.zeros(50)))
        hyper, counter = {"lr": draw()}, torch.tensor(3)
        moves = Moves(optimizer, call)
        moves.move(state, draw(50), hyper, counter)
        tape, adjoint = [draw(5, 50) for _ in (*state, 0)], tuple(draw(50) for _ in state)
        of_hyper = {"lr": draw()}
        back = moves.back(tape, torch.tensor(2), hyper, counter, adjoint, of_hyper)
        found.append([*state, counter, *back, *adjoint, of_hyper["lr"]])
    assert found[0][len(state)] == 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="there is no C++ compiler")
@pytest.mark.parametrize("optimizer", [Adam(), SGD(0.9, 1e-3, (2,), 0.5), AdaBelief(eps=1e-8)])
def test_a_compiled_optimiser_is_the_same(optimizer):
    fast = CompiledOptimizer(optimizer, CompiledNetwork(FlatModel(torch.nn.Linear(3, 2))))
    rng = generator(0)
    state, adjoint = (
        tuple(
            torch.rand(50, generator=rng, dtype=torch.float64)
            for _ in optimizer.init(torch.zeros(1))
        )
        for _ in range(2)
    )
    grad = torch.rand(50, generator=rng, dtype=torch.float64)
    hyper = {"lr": torch.tensor(0.1, dtype=torch.float64)}
    for count in (0, 1, 2, 7):  # one compilation serves all
        own, expected = (one.step(state, grad, hyper, count) for one in (fast, optimizer))
        for one, other in zip(own, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
        own, expected = (
            optimizer_transpose(one, state, grad, hyper, count, adjoint)
            for one in (fast, optimizer)
        )
        for one, other in zip(
            (*own[0], own[1], own[2]["lr"]), (*expected[0], expected[1], expected[2]["lr"]),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert fast.network.compilations == 2


class Halting(SGD):
    """A user's own that looks at the number of the step, which no trace can follow."""

    __hash__ = None

    def step(self, state, grad, hyper, count):
        return super().step(state, grad, hyper, count) if [1, 2, 3][count] < 9 else state


def test_an_optimiser_that_cannot_be_compiled_is_called_as_it_is():
    network = CompiledNetwork(FlatModel(torch.nn.Linear(3, 2)), backend="eager")
    fast, state = CompiledOptimizer(Halting(), network), Halting().init(torch.zeros(4))
    grad, hyper = torch.ones(4), {"lr": torch.tensor(0.1)}
    for count in range(3):
        own, expected = (one.step(state, grad, hyper, count) for one in (fast, Halting()))
        assert all(map(torch.equal, own, expected))
        adjoint = (torch.ones(4), torch.ones(4))
        assert torch.equal(fast.transpose(state, grad, hyper, count, adjoint)[0][0], adjoint[0])
    assert {name for name, _ in network.refused} == {"step", "transpose"}


def test_steps_of_one_variant_are_one_program_eight_in_a_row():
    method = captured(even(), unroll=30, window=9)
    seen = []

    class Counted(Called):
        def __call__(self, key, program, changed):
            seen.append(key)
            program()

    method.on_device(Counted, EXAMPLES, {}, [Unroll(Replay(0), Start(Replay(0)), 19, 9)])
    names = [(key[0], key[-1]) for key in seen if key[0] != "outer"]
    burn_in = [("burn-in", 1)] + [("burn-in", 8)] * 2 + [("burn-in", 1)] * 2
    assert names == [*burn_in, *[("tape", 8), ("tape", 1)], *[("walk", 8), ("walk", 1)]]


class Recording(Called):
    """Runs, in an outer step, the first program of each key in place of the later ones.

    A recording also keeps what the host decided when it was made. Here that would be read anew from
    the draws of another outer step; so each begins with none.
    """

    def __init__(self):
        self.first, self.runs, self.keys = {}, 0, set()

    def begin(self):
        self.first = {}

    def __call__(self, key, program, changed):
        self.runs += 1
        self.keys.add(key)
        before = [tensor.clone() for tensor in changed]
        if key not in self.first:  # warmed up, after which all is as it was
            program()
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self.first.setdefault(key, program)()


def test_one_program_serves_all_steps_of_its_variant():
    task = even(precision="bfloat16")
    task = replace(task, recipe=replace(task.recipe, augment=("flip", "crop")))
    method, expected = (
        make(task, unroll=12, window=8, trajectories=2) for make in (captured, plain)
    )
    runners = []
    method.__dict__["make_runner"] = lambda: runners.append(Recording()) or runners[-1]
    for step in range(4):
        own, other = (
            one.estimate(EXAMPLES, {}, {"window": {}}, step) for one in (method, expected)
        )
        assert torch.equal(own.grads["images"], other.grads["images"])
        assert torch.equal(own.loss, other.loss)
    assert len(runners) == 2
    for runner in runners:
        assert {key[0] for key in runner.keys} == {"burn-in", "tape", "outer", "walk"}
        assert runner.runs > 4 * len(runner.keys)


def small_set(**options):
    """A set of six images with its batches, and a ConvNet for it."""
    images, labels = torch.randn(6, *SHAPE, generator=generator(2)), torch.arange(6) % 3
    recipe = Recipe(
        batch_per_class=1, classes_per_batch=3, augment=("flip", "rotate"), lr=0.01,
        precision="float32", **options,
    )  # fmt: skip
    factory = resolve("convnet", SHAPE, 3, width=8, depth=1)
    return (
        recipe,
        factory,
        lambda seed: SetBatches(images, torch.eye(3)[labels], labels, recipe, seed),
    )


@pytest.mark.parametrize("optimizer", [Adam(), SGD(0.9)])
def test_networks_that_train_by_programs_are_those_that_train_one_by_one(optimizer):
    recipe, factory, batches = small_set(optimizer=optimizer)
    inputs = torch.randn(5, *SHAPE, generator=generator(3))
    group = [(fresh(factory, seed, CPU), batches(seed)) for seed in (7, 8, 9)]
    found = [
        [predict(inputs).detach().clone() for predict in each]
        for each in courses(group, recipe, (4, 12), None, Called)
    ]
    for index, seed in enumerate((7, 8, 9)):
        plain = train_network(fresh(factory, seed, CPU), batches(seed), recipe, (4, 12), seed)
        for stop, predict in enumerate(plain):
            torch.testing.assert_close(found[stop][index], predict(inputs), rtol=1e-3, atol=1e-4)
    compiled = CompiledNetwork(FlatModel(factory()), backend="eager")
    one = [(fresh(factory, 7, CPU), batches(7))]
    (last,) = next(courses(one, recipe, (12,), compiled, Called))
    torch.testing.assert_close(last(inputs), found[1][0], rtol=1e-3, atol=1e-4)


def test_scores_are_those_of_programs_where_a_device_records_them(monkeypatch):
    recipe, factory, batches = small_set()
    split = TensorSplit(torch.randn(300, *SHAPE, generator=generator(4)), torch.arange(300) % 3)
    how = {
        "factory": factory, "recipe": recipe, "lengths": (5, 10), "splits": (split,), "nets": 4,
        "seed": 3, "device": CPU,
    }  # fmt: skip
    plain, runners = scoring.score(batches, **how), []
    monkeypatch.setattr(scoring, "runner_for", lambda _: lambda: runners.append(0) or Called())
    torch.testing.assert_close(scoring.score(batches, **how), plain, rtol=0, atol=0.01)
    assert len(runners) == 4
    monkeypatch.setattr(scoring, "runner_for", lambda _: Failing)
    assert torch.equal(scoring.score(batches, **how), plain)


def test_what_is_not_the_same_at_every_step_trains_step_by_step():
    recipe, factory, batches = small_set()
    module = factory()
    assert can_be_programs(module, batches(0), recipe)
    assert not can_be_programs(module, lambda step: None, recipe)
    assert not can_be_programs(module, batches(0), replace(recipe, cutmix=0.5))
    assert not can_be_programs(module, batches(0), replace(recipe, batch_size=4))
    batch_norm = resolve("convnet", SHAPE, 3, width=8, depth=1, norm="batch")()
    assert not can_be_programs(batch_norm, batches(0), recipe)
    drawing = torch.nn.Sequential(module, torch.nn.Dropout(0.5))
    assert not can_be_programs(drawing, batches(0), recipe)
