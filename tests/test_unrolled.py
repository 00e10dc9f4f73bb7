"""The method: several trajectories are the mean of single ones, and how a run keeps, compiles and
rounds.
"""

import dataclasses

import pytest
import torch
from torch import Tensor
from twins import CPU

import potstill
from potstill.config.config import configuration, resolved
from potstill.data.splits import TensorSplit
from potstill.distillation.auto_values import resolve_compile
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CannotCompile, CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.rows import taken
from potstill.engine.unroll import Keep
from potstill.engine.when_to_compile import (
    NetworkFamily,
    compiled_if_worth,
    compiled_networks,
    missing_compiler,
)
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Method, Problem, Real, Sizes
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import Bptt, RatBptt
from potstill.models import resolve
from potstill.progress import SILENT, Listener
from potstill.seeds import generator

QUICK = {"model": "mlp", "depth": 1, "storage": "memory", "preprocess": "none"}
RESOLVED = {
    "compile": "off",
    "precision": "float32",
    "outer_lr": 0.1,
    "label_lr": 0.1,
    "batch_per_class": 2,
    "classes_per_batch": 3,
    "steps": 5,
    "micro_batch": 9,
    "threads": 1,
    "device": "cpu",
    "augment": (),
}
SHAPE = (1, 8, 8)
EXAMPLES = Examples(torch.randn(3, *SHAPE, generator=generator(0)), torch.eye(3), torch.arange(3))
OPTIONS = {"unroll": 6, "window": 3}


def problem(**options) -> Problem:
    """Three distilled images against sixty real ones."""
    images, labels = torch.randn(60, *SHAPE, generator=generator(1)), torch.arange(60) % 3
    factory = resolve("convnet", SHAPE, 3, width=8, depth=1)
    networks = NetworkFamily(factory, SHAPE, 3, CPU, options.pop("precision", "float32"))
    real = Real(TensorSplit(images, labels), 3, 20, ("flip",), micro_batch=7)
    recipe = Recipe(batch_per_class=1, classes_per_batch=3, augment=("rotate",))
    return Problem(real, networks, torch.arange(3), recipe, 0, CPU, **{"micro_batch": 2, **options})


def rat(task: Problem, **options) -> RatBptt:
    """RaT-BPTT on a problem."""
    return RatBptt(task, RatBptt.Options(**{**OPTIONS, **options}))


def estimate(task: Problem, outer_step: int = 4, **options) -> tuple[float, Tensor, dict]:
    method = rat(task, **options)
    found = method.estimate(EXAMPLES, {}, method.start()[0], outer_step)
    info = {
        name: float(value) if isinstance(value, Tensor) else value
        for name, value in found.info.items()
    }
    return float(found.loss), found.grads["images"], info


def test_trajectories_are_the_mean_of_as_many_single_unrolls():
    loss, images, info = estimate(problem(), trajectories=3)
    method = rat(problem(), trajectories=3)
    singles = []
    for trajectory in range(3):  # as a process of that rank would compute it
        replay = Replay(4, trajectory)
        burn_in, window = method.options.draw({}, method.rng("window", replay), 4)
        singles.append(
            method.trajectory(EXAMPLES, {}, replay, burn_in, window).meta_gradient(replay)
        )
        assert (info["burn_in"][trajectory], info["window"][trajectory]) == (burn_in, window)
    torch.testing.assert_close(images, sum(single.leaves["images"] for single in singles) / 3)
    assert loss == pytest.approx(sum(float(single.loss) for single in singles) / 3)
    assert len({float(single.loss) for single in singles}) == 3  # each has its own start


def test_the_first_trajectory_is_that_of_a_run_with_one():
    one, three = rat(problem()), rat(problem(), trajectories=3)
    single = one.estimate(EXAMPLES, {}, one.start()[0], 4)
    info = single.info
    first = three.trajectory(
        EXAMPLES, {}, Replay(4), info["burn_in"], info["window"]
    ).meta_gradient(Replay(4))
    assert torch.equal(first.leaves["images"], single.grads["images"])


def test_trajectories_have_real_batches_of_their_own():
    method = rat(problem(), trajectories=3)
    drawn = []
    for trajectory in range(3):
        parts = list(method.real_parts(Replay(4, trajectory), whole=False))
        assert [len(part.positions) for part, _ in parts] == [7, 7, 6]
        assert sum(weight for _, weight in parts) == pytest.approx(1)
        drawn.append([int(row) for part, _ in parts for row in part.positions])
    assert drawn[0] != drawn[1]
    assert all(len(set(rows)) == 20 for rows in drawn)


def test_frozen_examples_get_no_gradient_and_the_others_the_same():
    method = rat(problem())
    whole = method.estimate(EXAMPLES, {}, method.start()[0], 4).grads["images"]
    for frozen in (1, 2):
        part = dataclasses.replace(EXAMPLES, frozen=frozen)
        found = method.estimate(part, {}, method.start()[0], 4).grads["images"]
        assert torch.equal(found[:frozen], torch.zeros_like(found[:frozen]))
        torch.testing.assert_close(found[frozen:], whole[frozen:], rtol=1e-4, atol=1e-7)


def test_the_learned_rate_has_the_derivative_of_its_logarithm():
    method = rat(problem(), learn_lr=True, unroll=3, window=3)
    state, learnables = method.start()
    assert set(learnables) == {"log_lr"}
    value, h = learnables["log_lr"].value, 0.01
    assert method.recipe(Recipe(), {"log_lr": value}, state).lr == pytest.approx(0.001)
    found = method.estimate(EXAMPLES, {"log_lr": value}, state, 4)
    up, down = (
        float(method.estimate(EXAMPLES, {"log_lr": value + sign * h}, state, 4).loss)
        for sign in (1, -1)
    )
    assert float(found.grads["log_lr"]) == pytest.approx((up - down) / (2 * h), rel=0.03)
    assert "log_lr" not in rat(problem()).estimate(EXAMPLES, {}, state, 4).grads


def test_compiled_and_rounded_unrolls_follow_the_plain_one():
    plain = problem()
    compiled = CompiledNetwork(plain.networks.model(0), backend="eager")
    traced = dataclasses.replace(plain, networks=plain.networks.with_compiled(compiled))
    torch.testing.assert_close(estimate(traced)[1], estimate(plain)[1], rtol=0.02, atol=1e-6)
    rounded = estimate(problem(precision="bfloat16"))[1]
    assert (
        0.9
        < float(torch.cosine_similarity(rounded.flatten(), estimate(plain)[1].flatten(), dim=0))
        < 1
    )


def test_rounding_does_not_spoil_a_window_that_begins_at_the_first_step():
    # With the first step rounded Adam's derivative there is another: cosines from -0.2 to 0.2.
    plain = problem()
    wide = dataclasses.replace(
        plain.networks, factory=resolve("convnet", SHAPE, 3, width=32, depth=2)
    )
    rounded = dataclasses.replace(wide, precision="bfloat16")
    for outer_step in range(4):
        one, other = (
            Bptt(dataclasses.replace(plain, networks=networks), Bptt.Options(unroll=6))
            .estimate(EXAMPLES, {}, {"window": {}}, outer_step)
            .grads["images"]
            .flatten()
            for networks in (wide, rounded)
        )
        assert 0.98 < float(torch.cosine_similarity(one, other, dim=0)) < 1


def never() -> CompiledNetwork:
    raise CannotCompile("of the moon")


def test_why_a_run_is_not_compiled_is_said_or_an_error():
    said: list[str] = []
    assert compiled_if_worth("off", CPU, lambda: 1e99, never, said.append) is None
    assert said == []
    assert compiled_if_worth("auto", CPU, lambda: 1e9, never, said.append) is None
    assert said == [], "a short run: nothing is missing"
    if missing_compiler(CPU) is None:
        assert compiled_if_worth("auto", CPU, lambda: 1e99, never, said.append) is None
        assert said[-1] == "not compiled: of the moon"
        with pytest.raises(
            InputError, match=r"compile=on is not possible: of the moon; use --compile auto"
        ):
            compiled_if_worth("on", CPU, lambda: 1, never, said.append)
    assert compiled_if_worth("auto", torch.device("mps"), lambda: 1e99, never, said.append) is None
    assert "not used on mps" in said[-1]


def test_without_a_compiler_a_run_says_so_and_goes_on(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    monkeypatch.setattr(
        "potstill.engine.when_to_compile.missing_compiler",
        lambda device: "there is no C++ compiler; install g++ or clang++",
    )
    said: list[str] = []
    config = resolved(configuration(QUICK, steps=10**9, window=5, device="cpu"), **RESOLVED)
    networks = problem().networks
    sizes = Sizes(SHAPE, 3, (2,), (6,), Cut(6), 20, 20, 10**9)
    config, compiled = resolve_compile(
        config, "auto", RatBptt, sizes, networks, Listener(say=said.append)
    )
    assert compiled is None
    assert config.run.compile == "off"
    assert said == ["not compiled: there is no C++ compiler; install g++ or clang++"]


def test_compiling_has_no_effect_on_a_method_that_compiles_nothing():
    class Still(Method):
        def estimate(self, examples, learned, state, step):
            return Estimate(0.0, {}, state)

    config = resolved(configuration(QUICK, device="cpu"), **RESOLVED)
    sizes = Sizes(SHAPE, 3, (2,), (6,), Cut(6), 20, 20, 1)
    known = (Still, sizes, problem().networks, SILENT)
    assert resolve_compile(config, "auto", *known)[1] is None
    with pytest.raises(
        InputError,
        match="compile=on has no effect with method rat-bptt, which compiles nothing here",
    ):
        resolve_compile(config, "on", *known)


class Moody(torch.nn.Module):
    """A network whose instances are different functions of their parameters."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        Moody.count += 1
        self.shift = Moody.count
        self.head = torch.nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1)).roll(self.shift, 1)


@pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}"
)
def test_networks_that_differ_in_more_than_tensors_are_not_compiled():
    with pytest.raises(CannotCompile, match="differ in more than parameters and buffers"):
        compiled_networks(
            NetworkFamily(Moody, SHAPE, 3, CPU, "float32"), [4], [], [], lambda sentence: None
        )


@pytest.mark.parametrize(
    ("tape", "keep"),
    [
        ("states", Keep()),
        ("sqrt", Keep(checkpoints=True)),
        ("bfloat16", Keep(dtype=torch.bfloat16)),
        ("host", Keep(device=CPU)),
    ],
)
def test_the_tape_is_kept_as_the_option_says(tape, keep):
    assert RatBptt.Options(tape=tape).keep == keep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tape": "sqr"},
            r"tape must be one of states, sqrt, host, bfloat16; got 'sqr' \(did you mean 'sqrt'",
        ),
        ({"trajectories": 0}, "trajectories must be at least 1, got 0"),
        (
            {"precision": "float16"},
            "precision must be one of auto, float32, bfloat16; got 'float16'",
        ),
        ({"compile": "yes"}, "compile must be one of auto, on, off; got 'yes'"),
    ],
)
def test_options_of_speed_and_memory_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        configuration(options)


@pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}"
)
def test_a_compiled_run_tells_what_it_compiled_and_repeats_to_the_byte(tmp_path):
    said: list[str] = []
    options = {
        "width": 16,
        "depth": 1,
        "steps": 2,
        "unroll": 4,
        "window": 2,
        "real_batch": 40,
        "lengths": (5,),
        "threads": 1,
        "compile": "on",
        "trajectories": 2,
        "validation_nets": 1,
        "learn_labels": True,
    }
    for name in ("one", "two"):
        potstill.distill(**options, out=tmp_path / name, listener=Listener(say=said.append))
    assert (tmp_path / "one/distilled.safetensors").read_bytes() == (
        tmp_path / "two/distilled.safetensors"
    ).read_bytes()
    assert any(sentence.startswith("compiled 3 functions in") for sentence in said)
    records = [
        line
        for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()
        if '"compilations"' in line
    ]
    assert len(records) == 2


@pytest.mark.parametrize("window", [1, 3])
def test_sparse_gradients_of_rows_change_no_bit(window, monkeypatch):
    labels = torch.arange(50) % 3
    whole = Examples(torch.randn(50, *SHAPE, generator=generator(2)), torch.eye(3)[labels], labels)
    recipe = Recipe(batch_per_class=1, classes_per_batch=2)
    method = rat(dataclasses.replace(problem(), labels=labels, recipe=recipe), window=window)

    def found() -> Tensor:
        return method.estimate(whole, {}, method.start()[0], 0).grads["images"]

    dense = found()
    monkeypatch.setattr("potstill.engine.rows.SPARSE_FROM", 0)
    assert (
        taken(whole.images.clone().requires_grad_(), torch.arange(2)).grad_fn.name()
        == "RowsBackward"
    )
    assert torch.equal(found(), dense)
    assert (dense.flatten(1).norm(dim=1) > 0).sum() <= 2 * window  # two rows a step


@pytest.mark.parametrize("points", [1, 2, 3])
def test_loss_points_add_up_unrolls_that_end_at_each(points):
    task = problem()  # 20 real images in parts of 7, 7 and 6
    method = rat(task, window=6, unroll=6, loss_points=points)
    found = method.trajectory(EXAMPLES, {}, Replay(4), 0, 6).meta_gradient(Replay(4))
    parts = list(method.real_parts(Replay(4), whole=False))
    expected, loss = torch.zeros_like(EXAMPLES.images), 0.0
    for point in range(points):
        window = 6 * point // points or 6  # the first share belongs to the end
        one = method.trajectory(EXAMPLES, {}, Replay(4), 0, window)
        part = one.unrolled.meta_gradient(one.objective, parts[point::points])
        expected, loss = expected + part.leaves["images"], loss + float(part.loss)
    torch.testing.assert_close(found.leaves["images"], expected, rtol=1e-3, atol=1e-7)
    assert float(found.loss) == pytest.approx(loss, rel=1e-5)


def test_more_loss_points_than_parts_are_as_many_as_parts():
    three, many = (
        rat(problem(), window=6, unroll=6, loss_points=points).estimate(
            EXAMPLES, {}, {"window": {}}, 4
        )
        for points in (3, 9)
    )
    assert torch.equal(three.grads["images"], many.grads["images"])
