"""How to train on a distilled set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from potstill.config.config import Resolved
from potstill.config.options import checked, convert, declared
from potstill.engine.optimizers import Adam, Optimizer
from potstill.records.plain import Unreadable, parse_fields
from potstill.registry import OPTIMIZERS


def tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the lists of plain data, as JSON gives them back, to tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }


@dataclass(frozen=True)
class Recipe:
    """How to train a network on the set, by the inner loop of distillation, for `steps` steps.

    Args:
        model: registered name or "package.module:factory".
        width: channels or units, for registered models.
        depth: blocks or layers, for registered models.
        norm: normalisation, for networks that have one.
        network_init: how parameters start, for registered models.
        optimizer: with its own options.
        lr: its learning rate.
        batch_per_class: synthetic images of a class in a batch.
        classes_per_batch: random classes in a batch.
        augment: augmentation operations, one a batch.
        steps: how many steps.
        warm_up: steps over which the learning rate grows from 0.
        final_rate: share of the learning rate to which it falls by the last step, in the shape of a
            cosine; 1: it stays.
        precision: "float32", or "bfloat16" for the arithmetic in the network.
        batch_size: shuffled batches of so many examples, epoch after epoch; None: by class, as
            above.
        learner: what learns from the set, a name in the registry.
        cutmix: probability that a batch is mixed by CutMix.
        mirrored_copies: whether networks train on the mirrored copy of each image, too.
        label_scale: of a learner that has one, by how much it multiplies centred targets.
        kernel: of a learner that has one, a name in the registry.
        kernel_depth: its hidden layers, or blocks.
        kernel_kind: "ntk", of its tangents, or "nngp", of its outputs.
        ridge: of a learner that is a regression, relative to the mean of the kernel's diagonal.
    """

    model: str = "convnet"
    width: int = 128
    depth: int | str = "auto"
    norm: str = "instance"
    network_init: str = "pytorch"
    optimizer: Optimizer = Adam()
    lr: float = 0.001
    batch_per_class: int = 1
    classes_per_batch: int = 10
    augment: tuple[str, ...] = ()
    steps: int = 300
    warm_up: int = 0
    final_rate: float = 1.0
    precision: str = "float32"
    batch_size: int | None = None
    learner: str = "network"
    cutmix: float = 0.0
    mirrored_copies: bool = False
    label_scale: float = 1.0
    kernel: str = "fc"
    kernel_depth: int = 1
    kernel_kind: str = "ntk"
    ridge: float = 1e-6

    @classmethod
    def of(cls, config: Resolved, steps: int) -> "Recipe":
        """Return the recipe that trains for so many steps as in the inner loop of a run."""
        inner, model = config.inner, config.model.options
        return cls(
            model=config.model.name,
            width=getattr(model, "width", 1),
            depth=getattr(model, "depth", "auto"),
            norm=getattr(model, "norm", "instance"),
            network_init=getattr(model, "network_init", "pytorch"),
            optimizer=config.inner_optimizer.options,
            lr=inner.inner_lr,
            batch_per_class=inner.batch_per_class,
            classes_per_batch=inner.classes_per_batch,
            augment=inner.augment,
            steps=steps,
            precision=inner.precision,
        )

    @property
    def constant_rate(self) -> bool:
        """Whether the learning rate is the same at every step."""
        return self.warm_up == 0 and self.final_rate == 1

    def rate_at(self, step: int) -> float:
        """Return the learning rate of step number `step`, from 0."""
        if step < self.warm_up:
            return self.lr * step / self.warm_up
        over = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        fallen = (1 - self.final_rate) * (1 - math.cos(math.pi * over)) / 2
        return self.lr * (1 - fallen)

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}
        name = OPTIMIZERS.name_of(type(self.optimizer))
        own = {
            item.name: getattr(self.optimizer, item.name)
            for item, _ in declared(type(self.optimizer))
        }
        return {**known, "optimizer": {"name": name, **own}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Recipe":
        """Return the recipe of plain data that `plain` gave.

        Raises:
            Unreadable: a field is missing, unknown, or of a wrong type.
            InputError: an unknown optimizer, or an option of it out of its range.
        """
        own: Any = plain.get("optimizer")
        if not isinstance(own, Mapping) or not isinstance(own.get("name"), str):
            raise Unreadable("recipe.optimizer must be a table with a name")
        rule = OPTIMIZERS[own["name"]]
        options = {name: value for name, value in tuples(own).items() if name != "name"}
        known = {item.name: (item, hint) for item, hint in declared(rule)}
        for name in options:
            if name not in known:
                raise Unreadable(f"recipe.optimizer has an unknown field {name!r}")
            item, hint = known[name]
            checked(name, item, convert(name, options[name], hint))
        table = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
            if name != "optimizer"
        }
        rest: Recipe = parse_fields(cls, table, "recipe")
        return replace(rest, optimizer=rule(**options))

    @property
    def model_options(self) -> dict[str, Any]:
        """The options of the model that `models.resolve` takes."""
        names = ("width", "depth", "norm", "network_init")
        return {name: getattr(self, name) for name in names}
