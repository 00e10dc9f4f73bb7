"""The outer loop: clipping, Adam, what is skipped, what is kept."""

import dataclasses
import math
from dataclasses import dataclass, field

import pytest
import torch
from test_runs import QUICK, bytes_of

import potstill
from potstill.distillation.leaf_rules import Rule
from potstill.distillation.outer import (
    Carried,
    Hooks,
    Interrupted,
    OuterState,
    Schedule,
    optimise,
    outer_step,
    rescale,
)
from potstill.distillation.outer_rates import Course
from potstill.distillation.packing import pack, require_fits, unpack
from potstill.distillation.result import doubts
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.step_log import Reader
from potstill.engine.optimizers import SGD, Adam, Descent
from potstill.errors import InputError
from potstill.methods.base import Estimate
from potstill.progress import Listener
from potstill.records.metrics import Figure

CPU = torch.device("cpu")


def rescaled(norm, average, limit):
    """Clip plain numbers."""
    before = torch.tensor(math.nan if average is None else average, dtype=torch.float64)
    moved, factor = rescale(torch.tensor(norm, dtype=torch.float64), before, limit)
    return float(moved), float(factor)


def stepped(method, schedule, rules, state):
    """Take a step and read what it tells."""
    state, told = outer_step(method, schedule, rules, state)
    return state.settled, Reader(method.remedy, CPU).read(told)


def test_clipping_follows_the_moving_average_of_the_raw_norm():
    # The released code's arithmetic: s <- 0.9 s + 0.1 g first, then clip to 2 s; so it acts only
    # above 2.25 times the old s.
    average, factor = rescaled(1.0, None, 2.0)
    assert (average, factor) == (1.0, 1.0)
    assert rescaled(2.24, 1.0, 2.0)[1] == 1.0
    average, factor = rescaled(100.0, 1.0, 2.0)
    assert average == pytest.approx(10.9)
    assert factor * 100 == pytest.approx(21.8)
    assert rescaled(100.0, 1.0, 0.0) == (pytest.approx(10.9), 1.0)
    assert rescaled(1.2, 1.0, 1.05) == (pytest.approx(1.02), pytest.approx(1.05 * 1.02 / 1.2))


def test_a_unit_gradient_has_norm_1_at_every_step():
    for norm in (1e-3, 1.0, 100.0):
        assert rescaled(norm, 1.0, "unit")[1] * norm == pytest.approx(1)
    assert rescaled(0.0, None, "unit") == (0.0, 1.0)
    method = Scripted([3.0, 0.5])
    state = begun()
    for expected in (0.5, 0.5):  # four equal entries
        before = state.moments["images"][0]
        state, record = stepped(method, config(clip="unit"), RULES, state)
        assert torch.allclose(
            state.moments["images"][0], 0.9 * before + 0.1 * torch.full((4,), expected)
        )
        assert not record.clipped


@dataclass
class Scripted:
    """A method whose meta-gradients are written down: of the images, and of the targets."""

    images: list[float]
    targets: float = 0.0
    seen: list[int] = field(default_factory=list)
    remedy: str = "lower --inner-lr"

    def estimate(self, leaves, state, outer_step):
        self.seen.append(outer_step)
        grads = {
            name: torch.full_like(
                leaf, self.images[outer_step] if name == "images" else self.targets
            )
            for name, leaf in leaves.items()
        }
        return Estimate(1.0, grads, {"calls": state["calls"] + 1}, {"window": 3})


def config(**options):
    return Schedule(**{"steps": 400, "clip": 2.0, **options})


def begun(leaves=None, optimizer=None):
    return OuterState.start(
        LEAVES if leaves is None else leaves, {"calls": 0}, optimizer or Adam(), Carried()
    )


RULES = {"images": Rule(0.1, clipped=True), "targets": Rule(0.2, least=0.0)}
LEAVES = {"images": torch.zeros(4), "targets": torch.full((2,), 0.5)}


def test_the_step_is_adam_on_the_clipped_images_and_the_raw_labels():
    script = [1.0, 1.0, 50.0, -1.0]
    method, leaf = Scripted(script, targets=3.0), torch.zeros(4, requires_grad=True)
    label = torch.full((2,), 5.0, requires_grad=True)
    adam = torch.optim.Adam([{"params": [leaf], "lr": 0.1}, {"params": [label], "lr": 0.2}])
    state, average = begun({"images": torch.zeros(4), "targets": torch.full((2,), 5.0)}), None
    for raw in script:
        state, record = stepped(method, config(), RULES, state)
        norm = math.sqrt(4) * abs(raw)  # of a vector of four equal entries
        average, factor = rescaled(norm, average, 2.0)
        leaf.grad, label.grad = torch.full((4,), raw * factor), torch.full((2,), 3.0)
        adam.step()
        torch.testing.assert_close(state.leaves["images"], leaf.detach())
        torch.testing.assert_close(state.leaves["targets"], label.detach())
        assert record.clipped == (raw == 50.0)
        assert record.grad_norm == pytest.approx(norm)
        assert record.info["window"] == 3


def test_the_outer_optimizer_is_a_part():
    script, rule = [1.0, 2.0, -1.0], SGD(0.5)
    method, leaf = Scripted(script), torch.zeros(4, requires_grad=True)
    sgd = torch.optim.SGD([leaf], lr=0.1, momentum=0.5)
    state = begun({"images": torch.zeros(4)}, rule)
    assert len(state.moments["images"]) == 1
    for raw in script:
        state, _ = stepped(method, config(clip=0.0, optimizer=rule), RULES, state)
        leaf.grad = torch.full((4,), raw)
        sgd.step()
        torch.testing.assert_close(state.leaves["images"], leaf.detach())


def test_learned_labels_stay_non_negative_and_images_do_not():
    method = Scripted([1.0] * 5, targets=1.0)
    state = begun()
    for _ in range(5):
        state, _ = stepped(method, config(), RULES, state)
    assert torch.equal(state.leaves["targets"], torch.zeros(2))
    assert (state.leaves["images"] < 0).all()


def test_a_meta_gradient_that_is_not_finite_is_skipped_and_counted_and_poisons_nothing():
    method = Scripted([1.0, float("nan"), float("inf"), 1.0])
    without = Scripted([1.0, 1.0])
    state, plain = begun(), begun()
    records = []
    for _ in range(4):
        state, record = stepped(method, config(), RULES, state)
        records.append(record)
    for _ in range(2):
        plain, _ = stepped(without, config(), RULES, plain)
    assert [record.skipped for record in records] == [False, True, True, False]
    assert records[1].grad_norm is None
    assert (state.step, state.updates, state.skipped_in_a_row) == (4, 2, 0)
    assert torch.equal(state.leaves["images"], plain.leaves["images"])
    assert state.clip_average == plain.clip_average


def test_twenty_in_a_row_end_the_run_with_a_way_out():
    method = Scripted([float("nan")] * 25)
    with pytest.raises(
        InputError, match=r"not finite in 20 outer steps in a row, up to step 20; lower --inner-lr"
    ):
        optimise(method, config(steps=25), RULES, begun(), CPU, Hooks())
    assert len(method.seen) == 20
    nineteen = Scripted([float("nan")] * 19 + [1.0])
    assert optimise(nineteen, config(steps=20), RULES, begun(), CPU, Hooks()).updates == 1


def test_the_best_set_by_validation_is_kept_and_the_first_wins_a_tie():
    method, marks = Scripted([1.0] * 8), iter([0.3, 0.7, 0.7, 0.2])
    seen = []

    def validate(state):
        seen.append(float(state.leaves["images"][0]))
        return Figure(next(marks), None, 1)

    state = optimise(
        method, config(steps=8, validate_every=2), RULES, begun(), CPU, Hooks(validate)
    )
    assert state.best.step == 4
    assert state.best.accuracy == 0.7
    assert float(state.best.leaves["images"][0]) == seen[1] != float(state.leaves["images"][0])


def test_the_last_step_is_validated_and_saved_whatever_the_intervals():
    method, validated, saved = Scripted([1.0] * 5), [], []
    hooks = Hooks(
        lambda state: validated.append(1) or Figure(0.5, None, 1),
        lambda state: saved.append(state.step),
    )
    optimise(
        method, config(steps=5, validate_every=3, checkpoint_every=2), RULES, begun(), CPU, hooks
    )
    assert len(validated) == 2
    assert saved == [2, 4, 5]


def test_a_stop_ends_after_its_step_and_saves():
    method, saved, logged = Scripted([1.0] * 5), [], []
    hooks = Hooks(
        None, lambda state: saved.append(state.step), logged.append, lambda: len(logged) == 3
    )
    with pytest.raises(Interrupted, match="interrupted after outer step 3"):
        optimise(method, config(steps=5), RULES, begun(), CPU, hooks)
    assert saved == [3]
    assert [record.step for record in logged] == [1, 2, 3]
    assert all(record.seconds >= 0 and record.memory_mb > 0 for record in logged)


def test_a_run_that_did_not_work_says_so_with_the_likeliest_cause():
    said: list[str] = []
    listener = Listener(say=said.append)
    labels = torch.randint(10, (300,), generator=torch.Generator().manual_seed(1))
    images = torch.rand(300, 8, 8, generator=torch.Generator().manual_seed(0))
    quick = {"model": "mlp", "width": 8, "depth": 1, "steps": 6, "unroll": 4, "window": 2}
    quick |= {"real_batch": 30, "lengths": (5,), "validation_nets": 5, "compile": "off"}
    potstill.distill(images, labels, **quick, listener=listener)
    assert any("is about that of guessing (10 %): too few outer steps" in one for one in said)
    made = potstill.distill(**{**quick, "steps": 60, "unroll": 20, "window": 8, "lengths": (60,)})
    assert doubts(made, 0, 60) == []
    assert doubts(made, 40, 60)[0].startswith("note: 40 of 60 outer steps, most of them, changed")
    assert doubts(made, 2, 60)[0].startswith("note: 2 of 60 outer steps changed nothing, since")


def test_a_running_average_of_a_drifting_set_has_its_closed_form():
    # x_k = x_0 - k d under plain descent: e_k = x_k + d (k' + k'^2 + ... + k'^k), k' the decay.
    decay, steps = 0.8, 6
    schedule = Schedule(steps, SGD(0.0), average=decay)
    first = {"images": torch.zeros(4, dtype=torch.float64), "targets": torch.ones(2)}
    start = OuterState.start(first, {"calls": 0}, SGD(0.0), Carried(), ["images"])
    rules = {"images": Rule(0.5), "targets": Rule(0.5)}
    state = optimise(Scripted([2.0] * steps), schedule, rules, start, CPU, Hooks())
    moved = -1.0 * steps
    lag = sum(decay**power for power in range(1, steps + 1))
    torch.testing.assert_close(state.leaves["images"], torch.full((4,), moved).double())
    torch.testing.assert_close(state.averaged["images"], torch.full((4,), moved + lag).double())
    assert torch.equal(state.result["targets"], state.leaves["targets"])
    still = optimise(Scripted([0.0] * steps), schedule, rules, start, CPU, Hooks())
    assert torch.equal(still.averaged["images"], first["images"])


def test_the_average_is_what_is_validated_kept_and_found_in_a_checkpoint():
    seen = []

    def validate(state):
        seen.append(float(state.result["images"][0]))
        return Figure(0.5, 0.0, 1)

    schedule = Schedule(2, SGD(0.0), validate_every=1, average=0.5)
    start = OuterState.start(
        {"images": torch.zeros(4)}, {"calls": 0}, SGD(0.0), Carried(), ["images"]
    )
    hooks = Hooks(validate=validate)
    state = optimise(Scripted([2.0, 2.0]), schedule, {"images": Rule(0.5)}, start, CPU, hooks)
    assert seen == [-0.5, -1.25]
    assert state.best is not None
    assert float(state.best.leaves["images"][0]) == -0.5
    again = unpack(*pack(state))
    assert torch.equal(again.averaged["images"], state.averaged["images"])
    with pytest.raises(InputError, match="the checkpoint of outer step 2 must hold"):
        require_fits(dataclasses.replace(again, averaged={}), start)


def test_the_outer_rates_follow_their_course():
    cosine, warm = Course("cosine"), Course("linear", warm_up=0.2)
    assert [cosine(share) for share in (0, 0.5, 1)] == [1, pytest.approx(0.5), pytest.approx(0)]
    assert [warm(share) for share in (0, 0.1, 0.2, 0.6, 1, 1.5)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0, 0]
    )
    assert not Course().changes
    assert {Course()(share) for share in (0, 0.3, 1)} == {1.0}
    assert cosine.changes
    assert Course(warm_up=0.1).changes


def test_each_step_takes_its_rate_and_logs_it():
    method, records = Scripted([1.0] * 4), []
    schedule = config(steps=4, clip=0.0, optimizer=Descent(), course=Course("linear"))
    state = optimise(method, schedule, RULES, begun(), CPU, Hooks(log=records.append))
    assert [record.info["outer_rate"] for record in records] == [1.0, 0.75, 0.5, 0.25]
    assert torch.allclose(state.leaves["images"], torch.full((4,), -0.1 * 2.5))
    # Time may decide how much of the run is over.
    hooks = Hooks(log=records.append, share=lambda share: 0.5)
    optimise(Scripted([1.0] * 4), schedule, RULES, begun(), CPU, hooks)
    assert {record.info["outer_rate"] for record in records[4:]} == {0.5}
    records.clear()
    plain = config(steps=2)
    optimise(Scripted([1.0] * 2), plain, RULES, begun(), CPU, Hooks(log=records.append))
    assert "outer_rate" not in records[0].info


def test_a_run_with_a_course_resumes_to_the_byte_and_takes_no_other_steps(tmp_path):
    options = {**QUICK, "outer_schedule": "cosine", "warm_up": 0.25, "steps": 4}
    potstill.distill(**options, out=tmp_path / "whole")
    rates = [record.info["outer_rate"] for record in RunFolder(tmp_path / "whole").records()]
    assert rates == pytest.approx([Course("cosine", 0.25)(step / 4) for step in range(4)])
    stopped = Listener(stop=iter([False, True, True]).__next__)
    with pytest.raises(Interrupted):
        potstill.distill(**options, out=tmp_path / "run", listener=stopped)
    potstill.resume(tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    with pytest.raises(InputError, match=r"outer_schedule=cosine, 4 steps\), got 6; start"):
        potstill.resume(tmp_path / "run", steps=6)


def test_by_time_the_rates_fall_to_the_end_of_the_budget(tmp_path):
    options = {name: value for name, value in QUICK.items() if name != "steps"}
    options |= {"outer_schedule": "linear", "time_budget": "6s", "validate_every": 1000}
    potstill.distill(**options, out=tmp_path / "run")
    rates = [record.info["outer_rate"] for record in RunFolder(tmp_path / "run").records()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.3
    assert rates[-1] < 0.2
