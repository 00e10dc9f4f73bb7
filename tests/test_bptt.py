"""The method: several trajectories are the mean of single ones, and how a run keeps, compiles and rounds."""

import dataclasses

import pytest
import torch
from torch import Tensor
from twins import CPU

import potstill
from potstill.compilation import Networks, compiled_if_worth, missing_compiler
from potstill.compiled import CannotCompile, CompiledNetwork
from potstill.config import Config
from potstill.data import TensorSplit
from potstill.distillation import Listener
from potstill.inner import Keep
from potstill.methods.base import Problem, taken
from potstill.methods.bptt import Bptt
from potstill.models import resolve
from potstill.registry import InputError
from potstill.resolve import resolve_compile, resolve_keep
from potstill.seeds import generator

SHAPE = (1, 8, 8)
LEAVES = {"images": torch.randn(3, *SHAPE, generator=generator(0))}


def problem(**options) -> Problem:
    """Three distilled images against sixty real ones."""
    known = {
        "width": 8, "depth": 1, "unroll": 6, "window": 3, "real_batch": 20, "micro_batch": 7, "batch_per_class": 1,
        "classes_per_batch": 3, "synthetic_micro_batch": 2, "real_augment": ("flip",), "augment": ("rotate",),
        "precision": "float32",
    }  # fmt: skip
    config = Config.from_options(**{**known, **options})
    images, labels = torch.randn(60, *SHAPE, generator=generator(1)), torch.arange(60) % 3
    factory = resolve("convnet", SHAPE, 3, width=8, depth=1)
    return Problem(TensorSplit(images, labels), torch.arange(3), {"targets": torch.eye(3)}, 3, factory, config, CPU)


def estimate(task: Problem, outer_step: int = 4) -> tuple[float, Tensor, dict]:
    found = Bptt(task).estimate(LEAVES, Bptt(task).init(), outer_step)
    return found.loss, found.grads["images"], found.info


def test_trajectories_are_the_mean_of_as_many_single_unrolls():
    task = problem(trajectories=3)
    loss, images, info = estimate(task)
    method = Bptt(task)
    singles = []
    for trajectory in range(3):  # as a process of that rank would compute it
        replay = (4, trajectory) if trajectory else (4,)
        burn_in, window = method.sampler.draw({}, method.rng("window", replay), 4)
        singles.append(method.trajectory(LEAVES, replay, burn_in, window).meta_gradient(replay))
        assert (info["burn_in"][trajectory], info["window"][trajectory]) == (burn_in, window)
    torch.testing.assert_close(images, sum(single.leaves["images"] for single in singles) / 3)
    assert loss == pytest.approx(sum(float(single.loss) for single in singles) / 3)
    assert len({float(single.loss) for single in singles}) == 3  # each has its own start


def test_the_first_trajectory_is_that_of_a_run_with_one():
    one, three = Bptt(problem()), Bptt(problem(trajectories=3))
    single = one.estimate(LEAVES, one.init(), 4)
    first = three.trajectory(LEAVES, (4,), single.info["burn_in"], single.info["window"]).meta_gradient((4,))
    assert torch.equal(first.leaves["images"], single.grads["images"])


def rows(task: Problem, trajectory: int) -> tuple[list[int], float]:
    """Real examples of a trajectory, and the sum of its weights."""
    method = Bptt(task)
    parts = list(method.real_parts((4, trajectory) if trajectory else (4,), whole=False))
    return [int(row) for part, _ in parts for row in part[0]], sum(weight for _, weight in parts)


def test_a_split_real_batch_is_dealt_out_without_overlap():
    dealt = [rows(problem(trajectories=3, split_real_batch=True), trajectory) for trajectory in range(3)]
    assert [len(found) for found, _ in dealt] == [7, 7, 6]
    everything = [row for found, _ in dealt for row in found]
    assert len(set(everything)) == 20
    assert sorted(everything) == sorted(rows(problem(), 0)[0])  # the batch of a run with one trajectory
    assert all(total == pytest.approx(1) for _, total in dealt)
    own = [rows(problem(trajectories=3), trajectory)[0] for trajectory in range(3)]
    assert all(len(found) == 20 for found in own)
    assert own[0] != own[1]


def test_compiled_and_rounded_unrolls_follow_the_plain_one():
    plain = problem()
    networks = Networks(plain.factory, SHAPE, 3, CPU, "float32")
    traced = dataclasses.replace(plain, compiled=CompiledNetwork(networks.model(0), backend="eager"))
    torch.testing.assert_close(estimate(traced)[1], estimate(plain)[1], rtol=0.02, atol=1e-6)
    rounded = estimate(problem(precision="bfloat16"))[1]
    assert 0.9 < float(torch.cosine_similarity(rounded.flatten(), estimate(plain)[1].flatten(), dim=0)) < 1


def test_rounding_does_not_spoil_a_window_that_begins_at_the_first_step():
    # With the first step rounded Adam's derivative there is another: cosines from -0.2 to 0.2.
    plain = problem(method="bptt")
    plain = dataclasses.replace(plain, factory=resolve("convnet", SHAPE, 3, width=32, depth=2))
    config = Config.from_options(plain.config, precision="bfloat16")
    rounded = dataclasses.replace(plain, config=config)
    for outer_step in range(4):
        one, other = (estimate(task, outer_step)[1].flatten() for task in (plain, rounded))
        assert 0.98 < float(torch.cosine_similarity(one, other, dim=0)) < 1


def never() -> CompiledNetwork:
    raise CannotCompile("of the moon")


def test_why_a_run_is_not_compiled_is_said_or_an_error():
    said: list[str] = []
    assert compiled_if_worth("off", CPU, lambda: 1e99, never, said.append) is None
    assert said == []
    assert compiled_if_worth("auto", CPU, lambda: 1e9, never, said.append) is None
    assert "the run is short" in said[-1] or "no C++ compiler" in said[-1]
    if missing_compiler(CPU) is None:
        assert compiled_if_worth("auto", CPU, lambda: 1e99, never, said.append) is None
        assert said[-1] == "not compiled: of the moon"
        with pytest.raises(InputError, match=r"compile=on is not possible: of the moon; use --compile auto"):
            compiled_if_worth("on", CPU, lambda: 1, never, said.append)
    assert compiled_if_worth("auto", torch.device("mps"), lambda: 1e99, never, said.append) is None
    assert "not used on mps" in said[-1]


def test_without_a_compiler_a_run_says_so_and_goes_on(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    monkeypatch.setattr("potstill.compilation.missing_compiler", lambda device: "there is no C++ compiler; install g++ or clang++")
    said: list[str] = []
    config, compiled = resolve_compile(
        problem(steps=10**9).config, Networks(problem().factory, SHAPE, 3, CPU, "float32"), [2], said.append
    )
    assert compiled is None
    assert config.run.compile == "off"
    assert said == ["not compiled: there is no C++ compiler; install g++ or clang++"]


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


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}")
def test_networks_that_differ_in_more_than_tensors_are_not_compiled():
    with pytest.raises(CannotCompile, match="differ in more than parameters and buffers"):
        Networks(Moody, SHAPE, 3, CPU, "float32").compiled([4], [], [], lambda sentence: None)


def test_graphs_are_kept_as_the_budget_allows():
    task = problem()
    networks = Networks(task.factory, SHAPE, 3, CPU, "float32")
    few, many = (resolve_keep(problem(tape=f"graphs:{budget}").config, networks).graphs for budget in (0.5, 5))
    assert few >= 1
    assert many == pytest.approx(10 * few, abs=10)
    assert resolve_keep(problem(tape="sqrt").config, networks) == Keep(checkpoints=True)
    assert resolve_keep(problem(tape="bfloat16").config, networks) == Keep(dtype=torch.bfloat16)
    assert resolve_keep(problem(tape="host").config, networks) == Keep(device=CPU)
    assert resolve_keep(task.config, networks) == Keep()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tape": "sqr"},
            r"tape must be one of states, sqrt, host, bfloat16, or graphs:MB as in graphs:2000; got 'sqr' \(did you mean 'sqrt'",
        ),
        ({"tape": "graphs"}, "graphs:MB as in graphs:2000; got 'graphs'"),
        ({"tape": "graphs:many"}, "got 'graphs:many'"),
        ({"tape": "states:5"}, "got 'states:5'"),
        ({"tape": "graphs:9", "compile": "on"}, "tape graphs:MB keeps the graphs of uncompiled networks only; use --compile off"),
        ({"trajectories": 0}, "trajectories must be at least 1, got 0"),
        (
            {"trajectories": 9, "real_batch": 8, "split_real_batch": True},
            "trajectories must be at most real_batch=8 to split it, got 9",
        ),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16; got 'float16'"),
        ({"compile": "yes"}, "compile must be one of auto, on, off; got 'yes'"),
    ],
)
def test_options_of_speed_and_memory_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Config.from_options(**options)


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}")
def test_a_compiled_run_tells_what_it_compiled_and_repeats_to_the_byte(tmp_path):
    said: list[str] = []
    options = {
        "width": 16, "depth": 1, "steps": 2, "unroll": 4, "window": 2, "real_batch": 40, "lengths": (5,), "threads": 1,
        "compile": "on", "trajectories": 2, "split_real_batch": True, "validation_nets": 1,
    }  # fmt: skip
    for name in ("one", "two"):
        potstill.distill(**options, out=tmp_path / name, listener=Listener(say=said.append))
    assert (tmp_path / "one/distilled.safetensors").read_bytes() == (tmp_path / "two/distilled.safetensors").read_bytes()
    assert any(sentence.startswith("compiled 3 functions in") for sentence in said)
    records = [line for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines() if '"compilations"' in line]
    assert len(records) == 2


@pytest.mark.parametrize("window", [1, 3])
def test_sparse_gradients_of_rows_change_no_bit(window, monkeypatch):
    whole = torch.randn(50, *SHAPE, generator=generator(2))
    task = dataclasses.replace(problem(window=window, classes_per_batch=2), labels=torch.arange(50) % 3)
    task = dataclasses.replace(task, fixed={"targets": torch.eye(3)[task.labels]})

    def found() -> Tensor:
        return Bptt(task).estimate({"images": whole}, Bptt(task).init(), 0).grads["images"]

    dense = found()
    monkeypatch.setattr("potstill.methods.base.SPARSE_FROM", 0)
    assert taken(whole.clone().requires_grad_(), torch.arange(2)).grad_fn.name() == "RowsBackward"
    assert torch.equal(found(), dense)
    assert (dense.flatten(1).norm(dim=1) > 0).sum() <= 2 * window  # two rows a step
