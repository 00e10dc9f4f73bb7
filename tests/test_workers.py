"""Tasks of one thread each: in order, with errors in their place, and the same bytes for any number
of threads.
"""

import threading
import time

import pytest
import torch
from test_runs import QUICK, bytes_of

import potstill
from potstill import workers
from potstill.cli.parser import main
from potstill.devices import own_torch_state
from potstill.engine.cuts import Cut
from potstill.engine.flat import cut_of
from potstill.engine.losses import Batch, InMicroBatches, Whole, cross_entropy
from potstill.engine.when_to_compile import NetworkFamily, missing_compiler
from potstill.models import resolve
from potstill.seeds import generator

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 4])
def count(request):
    """So many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with workers.one_thread_a_task():
        yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks(count):
    running, most, lock = 0, 0, threading.Lock()

    def task(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 * (number % 3))
        assert torch.get_num_threads() == 1
        with lock:
            running -= 1
        return number

    assert list(workers.in_order(lambda number=number: task(number) for number in range(20))) == [
        *range(20)
    ]
    assert most == count


def test_few_are_begun_before_the_first_is_used(count):
    begun = []

    def tasks():
        for number in range(1000):
            begun.append(number)
            yield lambda: None

    results = workers.in_order(tasks())
    next(results)
    assert len(begun) <= workers.AHEAD * count
    results.close()


def test_a_task_may_have_tasks_of_its_own(count):
    def inner(number):
        return sum(workers.in_order(lambda part=part: 10 * number + part for part in range(5)))

    found = list(workers.in_order(lambda number=number: inner(number) for number in range(8)))
    assert found == [50 * number + 10 for number in range(8)]


def test_an_error_is_raised_in_its_place_and_nothing_runs_on(count):
    ended = []

    def task(number):
        if number == 3:
            raise ValueError("the fourth")
        time.sleep(0.01)
        ended.append(number)
        return number

    results = workers.in_order(lambda number=number: task(number) for number in range(50))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    known = len(ended)
    time.sleep(0.1)
    assert len(ended) == known < 50


def test_gradients_are_enabled_in_a_task(count):
    assert all(workers.in_order([torch.is_grad_enabled] * 8))


def test_threads_are_told_and_set_within_and_without():
    before = torch.get_num_threads()
    assert workers.threads() == before
    with own_torch_state():
        workers.set_threads(3)
        assert (workers.threads(), torch.get_num_threads()) == (3, 1)
        with workers.all_threads_at_once():
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    workers.set_threads(before)
    assert torch.get_num_threads() == before


class Counting:
    """A loss that notes how many threads its operations have, and in which thread it is."""

    def __init__(self):
        self.seen = set()

    def gradient(self, theta, batch, step):
        self.seen.add((threading.current_thread().name, torch.get_num_threads()))
        time.sleep(0.05)
        return theta.sum(), theta


def test_what_cannot_be_cut_has_all_threads_in_each_operation(count):
    loss, theta = Counting(), torch.ones(3)
    batch = Batch(torch.zeros(8, 2), torch.zeros(8, 3))
    Whole(loss).gradient(theta, batch, 0)
    assert loss.seen == {(threading.current_thread().name, count)}
    loss.seen.clear()
    InMicroBatches(loss, 2).gradient(theta, batch, 0)
    assert len(loss.seen) == min(count, 4)
    assert {own for _, own in loss.seen} == {1}


def test_a_network_computes_in_several_threads_at_once(count):
    factory = resolve("convnet", (3, 16, 16), 10, width=16)
    model = NetworkFamily(factory, (3, 16, 16), 10, CPU, "float32").model(0)
    loss, rng = cross_entropy(model), generator(0)
    batches = [
        Batch(torch.randn(4, 3, 16, 16, generator=rng).requires_grad_(), torch.eye(10)[:4])
        for _ in range(12)
    ]
    thetas = [model.theta * (1 + 0.01 * number) for number in range(12)]

    def take(theta, batch):
        grad = loss.gradient(theta, batch, 0)[1]
        return grad, *loss.product(theta, batch, 0, grad)[:2]

    pairs = list(zip(thetas, batches, strict=True))
    expected = [take(*pair) for pair in pairs]
    for _ in range(3):
        found = list(workers.in_order(lambda pair=pair: take(*pair) for pair in pairs))
        for own, other in zip(found, expected, strict=True):
            assert all(map(torch.equal, own, other))


def test_a_batch_is_cut_by_its_sizes_alone():
    cut = Cut.of(34, 3.06e8, "cpu")  # the ConvNet on images of 3 x 32 x 32
    assert [-(-count // cut.size(count)) for count in (1, 10, 20, 100, 500)] == [1, 2, 4, 8, 16]
    small = Cut.of(140, 1.8e7, "cpu")  # on digits
    assert [-(-count // small.size(count)) for count in (1, 10, 100, 500)] == [1, 2, 2, 4]
    tiny = Cut.of(10_000, 1e5, "cpu")  # an MLP on a few numbers
    assert tiny.size(10) == 10
    assert Cut.of(34, 3.06e8, "cuda") == Cut(34)
    assert Cut(34).size(100) == 34
    for most, least, count in ((7, 3, 50), (1, 1, 5), (100, 200, 9), (3, 0, 10)):
        assert 1 <= Cut(most, least).size(count) <= most
    found = set()
    for threads in (1, 4):
        workers.set_threads(threads)
        found.add(cut_of(resolve("convnet", (3, 16, 16), 10, width=16)(), (3, 16, 16), CPU))
    assert len(found) == 1
    workers.set_threads(2)


CONVNET = {
    **QUICK, "model": "convnet", "width": 16, "depth": 2, "micro_batch": "auto", "steps": 3,
    "precision": "float32", "validate_every": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preprocess": "zca", "trajectories": 2},
        {"boost_blocks": 2, "ipc": 2, "learn_labels": True},
        pytest.param(
            {"compile": "on"},
            marks=pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no compiler"),
        ),
        {"precision": "bfloat16"},
    ],
    ids=["plain", "zca", "boosted", "compiled", "bfloat16"],
)
def test_a_run_gives_the_same_bytes_for_any_number_of_threads(options, tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        own = {**CONVNET, **options, "threads": threads, "out": tmp_path / str(threads)}
        potstill.distill(**own)
    workers.set_threads(before)
    one, two, four = (bytes_of(tmp_path / name) for name in ("1", "2", "4"))
    assert one == two == four


def test_a_run_goes_on_with_another_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    options = {**CONVNET, "checkpoint_every": 1, "threads": 1}
    potstill.distill(**options, out=tmp_path / "whole")
    potstill.distill(**{**options, "steps": 2}, out=tmp_path / "run")
    command = ["distill", "--resume", str(tmp_path / "run"), "--steps", "3", "--threads", "2"]
    assert main(command) == 0
    workers.set_threads(before)
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


def test_tasks_of_a_gpu_stay_in_the_thread_that_asks(count):
    # Which stream work goes to, and whether it is being recorded, is known in one thread alone.
    names = set(
        workers.in_order([lambda: threading.current_thread().name] * 8, torch.device("cuda"))
    )
    assert names == {threading.current_thread().name}
