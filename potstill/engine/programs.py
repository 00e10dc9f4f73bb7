"""An unroll as four small programs on tensors that never move, which a GPU can record and replay.

A GPU takes a gradient of a few images faster than Python tells it to: some sixty kernels a
gradient, twice as many a Hessian product, each launched by hand. So the work of a step is written
as a program that reads and writes the same tensors every time, with the number of the step, the
place on the tape and the number of the real batch's part among them: burn-in step, taped step,
part of the outer loss, walk step. Recorded once, each is then launched as a whole, as often as an
outer step needs it; random windows change how often, never what.

What is random is drawn ahead, on the CPU as everywhere. On a CPU the programs are plain functions:
`Unrolled` gives the same, to the last bit if its optimiser is not compiled, and is what runs there,
since it copies less.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.engine.moves import Call, Moves, directly
from potstill.engine.optimizers import State
from potstill.engine.unroll import InnerProblem, Leaves, MetaGradient, Objective, step_product

WARM_UP = 2
"""Calls before a recording, in which libraries choose algorithms and reserve memory."""


IN_A_ROW = 8
"""Steps of one variant that are recorded as one program: launching one takes Python's time."""


class Runner(Protocol):
    """How programs are run."""

    def __call__(self, key: Hashable, program: Callable[[], None], changed: list[Tensor]) -> None:
        """Run a program.

        Args:
            key: names it; programs of one key do the same.
            program: a function on tensors that stay where they are.
            changed: those that it reads and changes.
        """
        ...

    def begin(self) -> None:
        """Start behind what was launched before."""
        ...

    def end(self) -> None:
        """Let what is launched afterwards wait for the programs."""
        ...

    def context(self) -> AbstractContextManager[Any]:
        """Return the context for what is done between programs."""
        ...


class Called:
    """Programs as plain functions."""

    def __call__(self, key: Hashable, program: Callable[[], None], changed: list[Tensor]) -> None:
        program()

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Captured:
    """Programs as CUDA graphs on a stream of their own, recorded when they are first run.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __call__(self, key: Hashable, program: Callable[[], None], changed: list[Tensor]) -> None:
        with self.context():
            if key not in self.graphs:
                self.graphs[key] = self.recorded(program, changed)
            self.graphs[key].replay()

    def recorded(self, program: Callable[[], None], changed: list[Tensor]) -> torch.cuda.CUDAGraph:
        """Record a program; the tensors that it changes keep their values."""
        before = [tensor.clone() for tensor in changed]
        for _ in range(WARM_UP):
            program()
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        del before
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            program()
        return graph

    def begin(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def end(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def context(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)


class Programs:
    """The programs of one trajectory, and the tensors that they work on.

    Before `run`, put the values of an outer step into `leaves`, `hyper` and `state` by `load`, and
    what is drawn ahead into the tensors that `problem` and `objective` read.

    Args:
        problem: the inner loop; its `counter` is moved, and its batches follow from that alone.
        objective: the outer loss; its parts are numbers, 0-d tensors on the device. None: the
            programs only train.
        leaves: as large as what is learned.
        hyper: as large as the optimiser's hyper-parameters.
        start: as large as the optimiser's state.
        longest: the longest window.
        tape: type in which the tape keeps states; None: their own.
        runner: how programs are run.
        call: calls the functions of the optimiser, compiled or not.
    """

    def __init__(
        self, problem: InnerProblem, objective: Objective | None, leaves: Leaves, hyper: Leaves,
        start: State, longest: int, tape: torch.dtype | None, runner: Runner,
        call: Call = directly,
    ):  # fmt: skip
        assert problem.counter is not None
        self.moves = Moves(problem.optimizer, call)
        self.problem, self.objective, self.run_program = problem, objective, runner
        self.counter = problem.counter
        self.leaves = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        self.hyper = {name: value.detach().clone() for name, value in hyper.items()}
        self.state = tuple(tensor.detach().clone() for tensor in start)
        theta, kind = self.state[0], tape or self.state[0].dtype
        self.tape = [theta.new_empty(longest, *theta.shape, dtype=kind) for _ in (*start, theta)]
        self.adjoint = tuple(torch.zeros_like(tensor) for tensor in self.state)
        self.of_leaves = {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        self.of_hyper = {name: torch.zeros_like(value) for name, value in self.hyper.items()}
        self.loss, self.weight = theta.new_zeros(()), theta.new_zeros(())
        self.at, self.part = torch.zeros_like(self.counter), torch.zeros_like(self.counter)

    def load(self, leaves: Leaves, hyper: Leaves, state: State) -> None:
        """Take the values that an outer step starts from."""
        with self.run_program.context():
            for name, leaf in leaves.items():
                self.leaves[name].copy_(leaf)
            for name, value in hyper.items():
                self.hyper[name].copy_(value)
            for tensor, value in zip(self.state, state, strict=True):
                tensor.copy_(value)

    def run(
        self, steps: range, window: int, parts: int, weight: float, outer: Hashable = None
    ) -> Iterator[None]:
        """Take an outer step, program by program; several trajectories' may take turns.

        Args:
            steps: numbers of its inner steps.
            window: how many of them are differentiated, the last ones.
            parts: parts of the outer loss.
            weight: of each in their sum.
            outer: variant of the outer loss.
        """
        self.zero(weight, steps.start)
        before, differentiated = steps[: len(steps) - window], steps[len(steps) - window :]
        yield from self.steps("burn-in", before, self.burn_in_step)
        yield from self.steps("tape", differentiated, self.taped_step)
        for _ in range(parts):
            self.launch(("outer", outer), self.outer_part)
            yield
        yield from self.steps("walk", differentiated[::-1], self.walk_step)

    def train(self, first: int, last: int) -> Iterator[None]:
        """Take the steps from `first` up to `last`, without it, and keep nothing of them."""
        if not first:
            self.zero(1.0)
        yield from self.steps("burn-in", range(first, last), self.burn_in_step)

    def steps(self, name: str, numbers: range, program: Callable[[int], None]) -> Iterator[None]:
        """Run a program at some steps, IN_A_ROW of one variant as one where there are so many."""
        for variant, same in itertools.groupby(numbers, self.problem.variant):
            for some in batched(same, IN_A_ROW):
                whole = len(some) == IN_A_ROW
                for steps in [some] if whole else [(step,) for step in some]:
                    key = name, variant, len(steps)
                    self.launch(key, partial(in_a_row, program, steps))
                    yield

    def launch(self, key: Hashable, program: Callable[[], None]) -> None:
        """Run a program."""
        changed = [
            *self.state, *self.adjoint, *self.of_leaves.values(), *self.of_hyper.values(),
            self.loss, self.counter, self.at, self.part,
        ]  # fmt: skip
        self.run_program(key, program, changed)

    @property
    def found(self) -> MetaGradient:
        """What the last `run` found, in tensors of its own."""
        return MetaGradient(
            self.loss.clone(),
            {name: of.clone() for name, of in self.of_leaves.items()},
            {name: of.clone() for name, of in self.of_hyper.items()},
            tuple(tensor.clone() for tensor in self.adjoint),
            tuple(tensor.clone() for tensor in self.state),
        )

    def zero(self, weight: float, first: int = 0) -> None:
        """Make ready for an outer step whose first inner step has this number."""
        with self.run_program.context():
            self.counter.fill_(first)
            for tensor in (self.at, self.part, self.loss, *self.adjoint):
                tensor.zero_()
            for tensor in (*self.of_leaves.values(), *self.of_hyper.values()):
                tensor.zero_()
            self.weight.fill_(weight)

    def burn_in_step(self, step: int) -> None:
        """Take a step without a derivative."""
        self.move(self.gradient(step))

    def taped_step(self, step: int) -> None:
        """Take a step that is walked back later."""
        grad = self.gradient(step)
        for kept, tensor in zip(self.tape, (*self.state, grad), strict=True):
            kept.index_copy_(0, self.at[None], tensor[None].to(kept.dtype))
        self.at += 1
        self.move(grad)

    def gradient(self, step: int) -> Tensor:
        """Compute the gradient of a step."""
        with torch.no_grad():
            batch = self.problem.batch(self.leaves, step)
        return self.problem.loss.gradient(self.state[0], batch, step)[1]

    @torch.no_grad()
    def move(self, grad: Tensor) -> None:
        """Let the optimiser take its step."""
        self.moves.move(self.state, grad, self.hyper, self.counter)

    def outer_part(self) -> None:
        """Add a part of the outer loss and its gradients."""
        assert self.objective
        loss, of_theta, rest = self.objective.gradient(self.state[0], self.leaves, self.part)
        self.loss += self.weight * loss
        self.adjoint[0].add_(self.weight * of_theta)
        for name, of in rest.items():
            self.of_leaves[name].add_(self.weight * of)
        self.part += 1

    def walk_step(self, step: int) -> None:
        """Walk back over a step."""
        self.counter -= 1
        self.at -= 1
        theta, of_grad = self.moves.back(
            self.tape, self.at, self.hyper, self.counter, self.adjoint, self.of_hyper
        )
        of_older, of_leaves = step_product(self.problem, theta, self.leaves, step, of_grad)
        assert of_older is not None
        self.adjoint[0].add_(of_older)
        for name, of in of_leaves.items():
            self.of_leaves[name] += of


def in_a_row(program: Callable[[int], None], steps: Sequence[int]) -> None:
    """Run a program at one step after another."""
    for step in steps:
        program(step)


def batched(numbers: Iterator[int], size: int) -> Iterator[tuple[int, ...]]:
    """Yield `size` numbers at a time, and what is left."""
    while some := tuple(itertools.islice(numbers, size)):
        yield some
