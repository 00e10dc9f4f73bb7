"""Ranks: processes that share a run, each of which does a part of the work.

    torchrun --nproc-per-node 4 -m potstill distill ...

Independent parts of a whole (the trajectories of an outer step, the networks of an evaluation) are
dealt out by their index. Results are gathered, not reduced: every rank adds them up in the order of
the index, as one process does, and so the number of ranks does not change a result.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.devices import pick_device
from potstill.distributed.link import START, VARIABLES, Link, Lost, first_to_tell, whole
from potstill.errors import InputError

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Ranks:
    """This process among those that share its run.

    Args:
        index: its number, from 0.
        count: how many there are.
        local: its number on its machine.
        link: its connection to the others; None: there are none.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    link: "Link | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def of_environment(cls, known: Mapping[str, str]) -> "Ranks":
        """Read what torchrun tells a process; the result is not connected yet.

        Raises:
            InputError: its variables are half set, or are no numbers of a rank.
        """
        there = [name for name in VARIABLES if known.get(name)]
        if not there:
            return ALONE
        if len(there) < len(VARIABLES):
            missing = ", ".join(name for name in VARIABLES if name not in there)
            raise InputError(
                f"the variables {', '.join(VARIABLES)} must be set together, as torchrun does, or "
                f"not at all, got {', '.join(f'{name}={known[name]}' for name in there)} without "
                f"{missing}; {START}, or unset {' '.join(there)}"
            )
        count = whole(known, "WORLD_SIZE", 1, 1 << 16)
        return cls(
            whole(known, "RANK", 0, count - 1), count, whole(known, "LOCAL_RANK", 0, count - 1)
        )

    @property
    def first(self) -> bool:
        """Whether this rank writes files and reports to the user."""
        return self.index == 0

    def device(self, name: str) -> str:
        """Return the name of this rank's device.

        On CUDA each rank takes the GPU of its number on its machine.

        Raises:
            InputError: there are fewer GPUs.
        """
        if self.count == 1 or pick_device(name).type != "cuda":
            return name
        if self.local >= torch.cuda.device_count():
            raise InputError(
                f"each rank needs a GPU of its own, this machine has {torch.cuda.device_count()}, "
                f"got LOCAL_RANK={self.local}; start fewer ranks, or use --device cpu"
            )
        return f"cuda:{self.local}"

    def share(self, total: int) -> range:
        """Return which of `total` parts this rank computes."""
        return range(self.index, total, self.count)

    def gathered(
        self, own: Mapping[int, Tensors], total: int, like: Tensors | None = None
    ) -> list[Tensors]:
        """Gather the results of all parts on every rank; each must call this at the same point.

        Args:
            own: index -> the result of each part in `share(total)`: tensors by name, of the same
                shapes and types in every part.
            total: number of parts.
            like: a result's shapes and types; None: those of this rank's first result.
        Returns:
            The results in the order of their index, bit by bit what their ranks computed.
        Raises:
            Lost: another rank is gone.
        """
        if self.link is None:
            # In the layout that received tensors have: a sum over another layout rounds otherwise.
            return [
                {name: tensor.contiguous() for name, tensor in own[index].items()}
                for index in range(total)
            ]
        like = own[self.index] if like is None else like
        rows = -(-total // self.count)
        sizes = [tensor.numel() * tensor.element_size() for tensor in like.values()]
        # As bytes: one message for all types, in which nothing is rounded. Ranks with fewer parts
        # fill up.
        sent = torch.zeros(rows, sum(sizes), dtype=torch.uint8, device=gathering_device(like))
        for row, index in enumerate(self.share(total)):
            sent[row] = torch.cat([as_bytes(own[index][name]).to(sent.device) for name in like])
        received = self.link.gather(sent)

        def result(index: int) -> Tensors:
            parts = received[index % self.count][index // self.count].split(sizes)
            # Cloned: a view of another type must begin at a multiple of its size.
            return {
                name: part.clone().view(tensor.dtype).view(tensor.shape).to(tensor.device)
                for (name, tensor), part in zip(like.items(), parts, strict=True)
            }

        return [result(index) for index in range(total)]

    def any(self, asked: bool) -> bool:
        """Return whether any rank asks; each must call this at the same point."""
        if self.link is None:
            return asked
        return any(
            bool(answer) for answer in self.link.gather(torch.tensor([asked], dtype=torch.uint8))
        )

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one rank of each machine go first, so that what it keeps on disk is made once."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def stopping(self) -> None:
        """Note that this rank was told to stop, and wait less long for the others from now on.

        torchrun also tells it when another rank died, and kills the rest 30 seconds later.
        """
        if self.link:
            self.link.hurry()

    def require_same(self, values: Mapping[str, object]) -> None:
        """Wait until every rank is here with the same values by name.

        Raises:
            InputError: the values differ; it is raised on all ranks.
            Lost: another rank is gone.
        """
        if self.link is None:
            return
        told = self.link.tell({name: str(value) for name, value in values.items()})
        for rank, known in enumerate(told):
            for name in sorted({*told[0], *known}):
                here, there = told[0].get(name), known.get(name)
                if here != there:
                    raise InputError(
                        f"{name} must be the same on all ranks, rank 0 has {here} and rank {rank} "
                        f"has {there}; start every rank with the same command and the same data"
                    )


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Connect this process with the ranks that torchrun started; without torchrun it is alone.

    All leave together. A rank that ends by an error ends the others too.

    Raises:
        InputError: the variables of torchrun are half set.
        Lost: a rank does not connect.
    """
    ranks = Ranks.of_environment(os.environ)
    if ranks.count == 1:
        yield ranks
        return
    link = Link(ranks.index, ranks.count, os.environ)
    try:
        yield dataclasses.replace(ranks, link=link)
        link.gather(torch.zeros(1, dtype=torch.uint8))
    except BaseException as error:
        first_to_tell(link.store)  # before the others learn of it: who knows the cause tells it
        if not isinstance(error, Lost):
            link.end(str(error) or type(error).__name__)
        raise
    finally:
        link.close()


def require_alone(command: str) -> None:
    """Raise an InputError if several ranks are to run a command that they cannot share."""
    count = Ranks.of_environment(os.environ).count
    if count > 1:
        raise InputError(
            f"`potstill {command}` is not dealt out to ranks and must run in one process, got "
            f"{count}; start it without torchrun"
        )


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor in the order of its entries, 1-d."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def gathering_device(like: Tensors) -> torch.device:
    """Return where results are gathered: on the GPU if NCCL can, else on the CPU."""
    devices = {
        tensor.device for tensor in like.values() if tensor.is_cuda and dist.is_nccl_available()
    }
    return devices.pop() if devices else torch.device("cpu")
