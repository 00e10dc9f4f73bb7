"""Expert trajectories: the parameters of networks in the course of training on all real examples.

They are prepared once for all runs with the same data, network and settings, kept on disk one file
an expert, and made where one is missing. An expert is its start and, epoch by epoch, how it moved:
moves are small, and so lose little when they are kept as bfloat16; each is that from where the
kept ones lead, so that what they lose does not add up.

Source: Cazenavette et al. 2022, arXiv:2203.11932, section 3.1: SGD without momentum, decay or
    schedule, under the augmentation that the student will have. Only the epochs that a student can
    start from or be compared with are taken. Flat experts: Du et al. 2023, arXiv:2211.11004, by the
    sharpness-aware step of Zhuang et al. 2022 (GSAM, arXiv:2203.08065).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from potstill import files
from potstill.cache import Cache
from potstill.config.options import option
from potstill.data import augmentation
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, Differentiable
from potstill.errors import InputError
from potstill.evaluation.training import batches_an_epoch, shuffled
from potstill.methods.base import Problem
from potstill.models import fresh
from potstill.seeds import derive, generator

MANIFEST, KIND = "experts.safetensors", "experts"
TINY = 1e-12
SPARE = 50_000_000
"""Bytes that are left free on the disk."""


@dataclass(frozen=True)
class ExpertOptions:
    """Options of the experts."""

    experts: int = option(10, "networks trained on all real examples beforehand", low=1)
    expert_lr: float = option(0.01, "their learning rate, of plain SGD", low=0, open_low=True)
    expert_batch: int = option(256, "real examples in a step of theirs", low=1)
    expert_seed: int = option(0, "seed of the experts, which runs of any seed share", low=0)
    expert_storage: Literal["bfloat16", "float32"] = option(
        "bfloat16", "type in which their moves are kept; bfloat16 takes half the disk"
    )
    expert_folder: str = option(
        "", "folder to keep them in; empty: the cache, under a name that tells what they are"
    )


@dataclass(frozen=True)
class Sharpness:
    """Sharpness-aware training of flat experts.

    Args:
        rho: how far the loss is looked at uphill, in each parameter's own scale; 0: not at all.
        alpha: share of the descent along what the gradient there leaves out.
    """

    rho: float = 0.0
    alpha: float = 0.0

    def direction(self, loss: Differentiable, theta: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the direction to descend along, from the gradients here and uphill.

        Args:
            loss: of the network.
            theta: (P,) its parameters.
            batch: of the step; both gradients read the same.
            step: its number.
        """
        grad = loss.gradient(theta, batch, step)[1]
        if self.rho == 0:
            return grad
        uphill = theta.square() * grad / ((theta.abs() * grad).norm() + TINY)
        above = loss.gradient(theta + self.rho * uphill, batch, step)[1]
        left_out = grad - above * ((grad @ above) / above.square().sum().clamp_min(TINY**2))
        return above - self.alpha * left_out


PLAIN = Sharpness()


@dataclass(frozen=True)
class Experts:
    """The experts of a run.

    Args:
        problem: the data and networks.
        options: of the experts.
        epochs: how many each has taken at its end.
        sharpness: how they descend.
    """

    problem: Problem
    options: ExpertOptions
    epochs: int
    sharpness: Sharpness = PLAIN

    @property
    def known(self) -> dict[str, Any]:
        """What decides the trajectories, by name, as plain data."""
        own = self.options
        return {
            "data": self.problem.identity,
            "network": self.problem.networks.fingerprint(),
            "precision": self.problem.networks.precision,
            "augment": list(self.problem.recipe.augment),
            "learning rate": own.expert_lr,
            "batch": own.expert_batch,
            "seed": own.expert_seed,
            "storage": own.expert_storage,
            "sharpness": [self.sharpness.rho, self.sharpness.alpha],
        }

    def bytes_each(self) -> int:
        """Return the bytes that an expert takes on disk, without its file's header."""
        size = len(self.problem.networks.model(0).theta)
        return size * (4 + self.epochs * (2 if self.options.expert_storage == "bfloat16" else 4))

    def prepare(self, cache: Cache) -> "Trained":
        """Train the experts that are missing, and return all.

        Ranks that share a disk share the work, too: each begins with its own and takes over what no
        other has begun.

        Raises:
            InputError: the folder holds other experts, or the disk is too small.
        """
        folder, store = self.folder(cache), self.store(cache)
        if self.options.expert_folder and folder and not (folder / MANIFEST).exists():
            self.keep_manifest(folder)
        count, ranks = self.options.experts, self.problem.ranks
        missing = [
            index for index in range(count) if not store.holds(["expert", index], self.enough)
        ]
        if missing and folder:
            size = len(missing) * self.bytes_each() / 1e6
            store.listener.say(
                f"training {len(missing):,} expert{'s'[: len(missing) > 1]} for {self.epochs:,} "
                f"epoch{'s'[: self.epochs > 1]} each; they take {size:,.1f} MB in {folder}"
            )
        own = [index for index in ranks.share(count) if index in missing]
        for index in (*own, *(index for index in missing if index not in own)):
            self.of(store, index)
            store.listener.work("training experts", index + 1, count)
        if ranks.count > 1:
            first = self.of(store, 0)
            ranks.require_same({"the first expert": files.checksum(first, {})[:12]})
        return Trained(store, count, self)

    def enough(self, held: Mapping[str, Tensor]) -> bool:
        """Return whether an expert was trained for long enough."""
        return len(held["moves"]) >= self.epochs

    def of(self, store: Cache, index: int) -> Mapping[str, Tensor]:
        """Return an expert: "start" (P,) and "moves" (epochs or more, P)."""
        key = ["expert", index]
        build = partial(self.trajectory, index)
        return store.get(key, build, enough=self.enough, hold=not store.folder)

    def folder(self, cache: Cache) -> Path | None:
        """Return the folder that keeps the experts; None keeps them in memory."""
        given = self.options.expert_folder
        return Path(given) if given else cache.folder and cache.folder / "experts"

    def store(self, cache: Cache) -> Cache:
        """Return what keeps them."""
        return Cache(self.folder(cache), self.known, cache.listener)

    def check(self, cache: Cache) -> None:
        """Check the folder and the disk.

        Raises:
            InputError: the folder holds other experts, or the disk is too small for those that are
                missing.
        """
        folder, store = self.folder(cache), self.store(cache)
        if folder is None:
            return
        if self.options.expert_folder and (folder / MANIFEST).exists():
            self.require_same(folder)
        names = [store.name_of(["expert", index])[0] for index in range(self.options.experts)]
        missing = sum(not (folder / f"{name}.safetensors").exists() for name in names)
        if missing:
            self.require_room(folder, missing)

    def keep_manifest(self, folder: Path) -> None:
        """Write down whose experts a folder holds."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"expert_folder {folder} cannot be made: {error.strerror}; give another with "
                "--expert-folder, or leave it out"
            ) from error
        # A file of tensors holds at least one.
        files.save_tensors(folder / MANIFEST, {"none": torch.zeros(1)}, KIND, {"known": self.known})

    def require_same(self, folder: Path) -> None:
        """Raise an InputError if a folder holds others' experts."""
        manifest = folder / MANIFEST
        held: Mapping[str, Any] = files.load_tensors(manifest, KIND)[1].get("known", {})
        differing = [name for name, value in self.known.items() if held.get(name) != value]
        if differing:
            name = differing[0]
            shown = {
                side: "another" if name in ("data", "network") else known.get(name)
                for side, known in (("held", held), ("wanted", self.known))
            }
            what = f"another {name}" if shown["held"] == "another" else f"{name} {shown['held']}"
            raise InputError(
                f"expert_folder must hold experts of this run's data, network and settings, those "
                f"in {folder} are of {what}; give another folder, or leave --expert-folder out"
            )

    def require_room(self, folder: Path, missing: int) -> None:
        """Raise an InputError if the disk of a folder is too small for the missing experts."""
        wanted = missing * self.bytes_each()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        if free < wanted + SPARE:
            usable = max(0, free - SPARE)
            raise InputError(
                f"the disk of {there} must have {wanted / 1e6:,.0f} MB for experts, "
                f"{usable / 1e6:,.0f} MB can be used; lower --experts or --max-start, or give "
                "another disk with --expert-folder"
            )

    def seed(self, index: int) -> int:
        """Return the seed of an expert."""
        return derive(self.options.expert_seed, "expert", index)

    def model(self, index: int) -> FlatModel:
        """Return an expert before its training, with the constants that belong to it."""
        networks, device = self.problem.networks, self.problem.device
        return networks.flat(fresh(networks.factory, self.seed(index), device))

    def trajectory(self, index: int) -> dict[str, Tensor]:
        """Train an expert.

        Returns:
            "start" (P,), and "moves" (epochs, P) of the storage type.
        """
        problem, own, networks = self.problem, self.options, self.problem.networks
        train = problem.real.train
        seed, model = self.seed(index), self.model(index)
        size = problem.at_once(own.expert_batch)
        loss = networks.in_parts(
            networks.loss(model, lambda step: derive(seed, "dropout", step)), model.module, size
        )
        rng = generator(seed, "batches")
        rows = shuffled(len(train), own.expert_batch, rng)
        theta = model.theta
        storage = torch.bfloat16 if own.expert_storage == "bfloat16" else theta.dtype
        reached, moves = theta.clone(), []
        each = batches_an_epoch(len(train), own.expert_batch)
        for epoch in range(self.epochs):
            for step in range(epoch * each, (epoch + 1) * each):
                images, labels = train.take(next(rows))
                drawn = augmentation.draw(problem.recipe.augment, len(labels), rng)
                targets = problem.real.one_hot(labels).to(theta.dtype)
                batch = Batch(augmentation.apply(images, drawn), targets)
                theta = theta - own.expert_lr * self.sharpness.direction(loss, theta, batch, step)
            moves.append((theta - reached).to(storage).cpu())
            reached += moves[-1].to(reached)
        return {"start": model.theta.cpu(), "moves": torch.stack(moves)}


@dataclass(frozen=True)
class Trained:
    """Experts that are trained.

    Args:
        store: holds each.
        count: of them.
        made: how.
    """

    store: Cache
    count: int
    made: Experts

    def at(self, index: int, epochs: Sequence[int], device: torch.device) -> list[Tensor]:
        """Return the parameters (P,) of an expert after each of some numbers of epochs.

        Args:
            index: of the expert.
            epochs: ascending numbers of epochs.
            device: where the parameters go.
        """
        held = self.made.of(self.store, index)
        theta, done, found = held["start"].to(device), 0, []
        for epoch in epochs:
            for move in held["moves"][done:epoch]:
                theta = theta + move.to(theta)
            done = epoch
            found.append(theta)
        return found
