"""The options of an evaluation, and the protocols by which networks train.

A protocol is a frozen value and a row of the registry. The options are declared once: they are the
flags of `potstill evaluate`, the keywords of `potstill.evaluate`, and the settings that
evaluation.json records.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from potstill.config.options import Auto, checked, convert, option
from potstill.errors import InputError, near_miss
from potstill.registry import LEARNERS, PROTOCOLS

BASELINES = ("random", "full")
DSA = ("color", "crop", "cutout", "flip", "scale", "rotate")
DIGITS = tuple(name for name in DSA if name != "flip")


@dataclass(frozen=True)
class Protocol:
    """How networks train on a set, and what may choose for how long.

    Args:
        words: what a measured line says of it; empty: the candidates are named instead.
        chosen_on: the split that chooses the number of steps; None: nothing is chosen.
        candidates: numbers of steps to choose from; none: those of the run that made the set, or
            its own choice.
        epochs: passes over the examples, in place of a number of steps; 0: none.
        updates: ascending (examples, steps): training steps for so many examples or more; () unless
            the protocol has its own.
        optimizer: name and options of the optimizer that it sets; empty: the recipe's.
        decay_after: with `epochs`: numbers of them after which SGD's learning rate falls.
        decay: factor by which it falls.
        restart: whether the momentum starts again from 0 there.
        recipe: fields of the recipe that it sets, by name.
    """

    words: str = ""
    chosen_on: Literal["validation", "test"] | None = "validation"
    candidates: tuple[int, ...] = ()
    epochs: int = 0
    updates: tuple[tuple[int, int], ...] = ()
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    decay_after: tuple[int, ...] = ()
    decay: float = 0.1
    restart: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fixed(self) -> bool:
        """Whether it has a number of steps, or of epochs, of its own."""
        return bool(self.epochs or self.updates)

    def updates_on(self, examples: int) -> int:
        """Return how many steps of `updates` are for so many examples."""
        known = [steps for number, steps in self.updates if number <= examples]
        return known[-1] if known else self.updates[0][1]

    def choice(self, lengths: Sequence[int]) -> str:
        """Say what chose among these numbers of steps."""
        if self.fixed:
            return self.words
        if len(lengths) == 1:
            return "fixed steps"
        if self.chosen_on == "test":
            return self.words
        few = (
            ", ".join(map(str, lengths))
            if len(lengths) < 6
            else f"{lengths[0]}, {lengths[1]}, .. {lengths[-1]}"
        )
        said = f"{self.words}; " if self.words else ""
        return f"{said}best of {few} steps on validation data"


VALIDATION = Protocol()
PAPER_LENGTHS = (300, 600, 1000, 3000)
PAPER = Protocol(
    f"paper: best of {', '.join(map(str, PAPER_LENGTHS))} steps on the test set (optimistic)",
    "test",
    PAPER_LENGTHS,
)


def published(
    name: str, epochs: int, augment: tuple[str, ...], lr: float | None = 0.01
) -> Protocol:
    """Return the evaluation protocol of DC, DSA and DM, for E = `epochs`.

    With `lr` None the learning rate is the set's own, as in MTT's.

    A fresh network trains E + 1 epochs by SGD in shuffled batches of 256 and is tested once, at the
    end. After epoch E // 2 + 1, counted from 0, the learning rate falls to a tenth; the published
    code builds a new optimizer there, so that the momentum starts again from 0, and so does ours.
    One thing differs: an example that is left over alone goes with the batch before it.

    Source: `evaluate_synset` of github.com/VICO-UoE/DatasetCondensation (53f63a6), for Zhao, Mopuri
        & Bilen 2021
    (arXiv:2006.05929), Zhao & Bilen 2021 (arXiv:2102.08259) and 2023 (arXiv:2110.04181).
    """
    how = f"augmented by one of {', '.join(augment)}" if augment else "not augmented"
    return Protocol(
        f"{name}: {epochs + 1:,} epochs of SGD, {how}; tested once, nothing chosen",
        None,
        epochs=epochs + 1,
        decay_after=(epochs // 2 + 2,),
        recipe={
            "batch_size": 256, "augment": augment, "precision": "float32",
            **({} if lr is None else {"lr": lr}),
        },
    )  # fmt: skip


def as_in_idc(name: str, rest: Mapping[str, Any], augment: tuple[str, ...]) -> Protocol:
    """Return the evaluation protocol of IDC.

    A fresh network trains 1,000 epochs by SGD in shuffled batches of 64, and is tested at the end;
    the published code prints that, and the best of four tests on the way. After 2/3 and 5/6 the
    learning rate falls to a fifth.

    Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML
        2022, arXiv:2205.14959, and its code.

    Args:
        name: of the protocol.
        rest: what it sets of the recipe beside this.
        augment: operations, one entry for each batch.
    """
    epochs = 1000
    mixed = ", CutMix" if rest else ""
    return Protocol(
        f"{name}: {epochs:,} epochs of SGD, augmented by one of {', '.join(augment)}{mixed}; "
        "tested once, nothing chosen",
        None,
        epochs=epochs,
        decay_after=(2 * epochs // 3, 5 * epochs // 6),
        decay=0.2,
        restart=False,
        recipe={"lr": 0.01, "batch_size": 64, "augment": augment, "precision": "float32", **rest},
    )


def as_in_frepo(name: str, augment: tuple[str, ...]) -> Protocol:
    """Return the evaluation protocol of FRePo.

    A fresh network trains by squared error on targets less 1 / K, with Adam in batches of at most
    500, and is tested once, at the end. The rate grows for 500 steps and then falls to a hundredth.
    Networks have the norm and the initialisation of the set's recipe: those of FRePo have no norm,
    and LeCun's. Ours differs in this: batches of sets of more than 500 images are shuffled, where
    the published code has them in the order of the file, and the operations are ours (DSA's).

    Source: Zhou, Nezhadarya & Ba 2022, arXiv:2206.00719, and its code.

    Args:
        name: of the protocol.
        augment: operations, one for each batch.
    """
    return Protocol(
        f"{name}: squared error, Adam, steps by the number of examples, augmented by one of "
        f"{', '.join(augment)}; tested once, nothing chosen",
        None,
        updates=FREPO_UPDATES,
        optimizer={"name": "adam"},
        recipe={
            "lr": 3e-4, "batch_size": 500, "augment": augment, "precision": "float32",
            "learner": "network-mse", "warm_up": 500, "final_rate": 0.01,
        },
    )  # fmt: skip


def as_in_rcig(name: str, augment: tuple[str, ...], *, mirrored: bool) -> Protocol:
    """Return the evaluation protocol of RCIG.

    As FRePo's, at a third of its rate, in batches of at most 256, for 1,000 steps on 10 examples
    and 2,000 on more; colour images have their mirrored copies beside them. The published code is
    run both ways, augmented and not; without, it goes on for 2.5 times as many steps, at a
    hundredth of the rate. Its operations are one for each image, ours one for each batch.

    Source: Loo et al. 2023, arXiv:2302.06755, and its code.

    Args:
        name: of the protocol.
        augment: operations, one for each batch.
        mirrored: whether mirrored copies stand beside the images.
    """
    how = f"augmented by one of {', '.join(augment)}" if augment else "not augmented"
    beside = "on mirrored copies too, " if mirrored else ""
    return Protocol(
        f"{name}: squared error, Adam, {beside}{how}; tested once, nothing chosen",
        None,
        updates=((10, 1000), (11, 2000)),
        optimizer={"name": "adam"},
        recipe={
            "lr": 1e-4, "batch_size": 256, "augment": augment, "precision": "float32",
            "learner": "network-mse", "warm_up": 500, "final_rate": 0.01,
            "mirrored_copies": mirrored,
        },
    )  # fmt: skip


FREPO_UPDATES = (
    (10, 1000), (100, 2000), (200, 20_000), (400, 5000), (1000, 10_000), (2000, 40_000),
)  # fmt: skip
FREPO = as_in_frepo("frepo", DSA)
FREPO_DIGITS = as_in_frepo("frepo-digits", DIGITS)
RCIG = as_in_rcig("rcig", (), mirrored=True)
RCIG_AUGMENTED = as_in_rcig("rcig-augmented", DSA, mirrored=True)
RCIG_DIGITS = as_in_rcig("rcig-digits", (), mirrored=False)
RFAD = Protocol(
    "rfad: network less its start, squared error on scaled targets, SGD",
    candidates=(200, 500, 1000, 2000, 5000, 10_000, 20_000),
    recipe={
        "batch_size": 513, "augment": (), "precision": "float32", "learner": "network-centred",
    },
    optimizer={"name": "sgd", "momentum": 0.9},
)  # fmt: skip
"""Loo et al. 2022, arXiv:2210.12067: full batches, at the rate and label scale of the set; the
published code stops early, looking every 100 steps, here one of several lengths is chosen."""
KIP = Protocol(
    "kip: squared error, 5,000 steps of SGD at the largest stable rate; tested once, nothing "
    "chosen",
    None,
    updates=((1, 5000),),
    recipe={
        "lr": 1.0, "batch_size": 100, "augment": (), "precision": "float32",
        "learner": "network-stable", "final_rate": 0.0,
    },
    optimizer={"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
)  # fmt: skip
"""Nguyen, Novak, Xiao & Lee 2021, arXiv:2107.13034: as its notebook trains finite networks."""
MTT = published("mtt", 1000, DSA, lr=None)
MTT_DIGITS = published("mtt-digits", 1000, DIGITS, lr=None)
IDC = as_in_idc(
    "idc", {"cutmix": 0.5}, ("color+flip+crop", "color+flip+scale", "color+flip+rotate")
)
IDC_DIGITS = as_in_idc("idc-digits", {}, ("color+crop", "color+scale", "color+rotate"))
DC_300 = published("dc-300", 300, ())
DSA_300 = published("dsa-300", 300, DSA)
DSA_300_DIGITS = published("dsa-300-digits", 300, DIGITS)
DSA_1000 = published("dsa-1000", 1000, DSA)
DSA_1000_DIGITS = published("dsa-1000-digits", 1000, DIGITS)


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured on a set, and how."""

    nets: int = option(10, "fresh networks for each row", low=1)
    models: tuple[str, ...] = option(
        (),
        "other networks than the recipe's, one after the other: names, or package.module:factory",
        also="model",
    )
    learner: str = option(
        "auto", "what learns from the set (see `potstill list`); auto: the recipe's"
    )
    protocol: str = option(
        "validation", "how networks train and what chooses for how long (see `potstill list`)"
    )
    steps: int | Auto = option(
        "auto", "training steps; auto: as the protocol has it, else the recipe's", low=1
    )
    lr: float | Auto = option(
        "auto",
        "learning rate; auto: as the protocol has it, else the recipe's or, for another network, "
        "that or 0.3 times it, whichever is better on validation data",
        low=0,
        open_low=True,
        source="paper D.1: 0.001, and 0.0003 for wide ConvNets",
    )
    baselines: tuple[str, ...] = option(
        (),
        "measure beside it: random: as many real images, others for each network; full: all of "
        "them, by the set's recipe, for the best number of epochs on validation data",
        also="baseline",
    )
    full_epochs: int = option(20, "most epochs of the baseline full", low=1)
    seed: int = option(0, "seed of the networks", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile the networks; auto: when it pays"
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            checked(item.name, item, getattr(self, item.name))
        PROTOCOLS.check(self.protocol)
        if self.learner != "auto":
            LEARNERS.check(self.learner)
        for name in self.baselines:
            if name not in BASELINES:
                known = ", ".join(BASELINES)
                raise InputError(
                    f"baseline must be one of {known}; got {name!r}{near_miss(name, BASELINES)}"
                )
        protocol: Protocol = PROTOCOLS[self.protocol]
        if protocol.fixed and self.steps != "auto":
            number = "a number of epochs" if protocol.epochs else "its own number of steps"
            raise InputError(
                f"steps must be auto with the protocol {self.protocol}, which trains for {number}, "
                f"got {self.steps}"
            )
        own = protocol.recipe.get("learner", self.learner)
        if self.learner not in ("auto", own):
            raise InputError(
                f"learner must be auto with the protocol {self.protocol}, which is of {own}, got "
                f"{self.learner}; leave it out"
            )

    @classmethod
    def of(cls, **given: Any) -> "EvaluationOptions":
        """Return the defaults with some options changed, given by name as texts or values.

        Raises:
            InputError: an unknown name (the nearest right one is told), a value of the wrong type
                or out of its range.
        """
        hints, second = (
            get_type_hints(cls),
            {item.metadata["also"]: item.name for item in dataclasses.fields(cls)},
        )
        values = {}
        for name, value in given.items():
            first = second.get(name, name)
            if first not in hints:
                known = [*hints, *filter(None, second)]
                hint = near_miss(name, known)
                raise InputError(
                    f"unknown option {name!r}{hint}; `potstill evaluate --help` lists all"
                )
            values[first] = convert(first, value, hints[first])
        return cls(**values)

    @property
    def as_meant(self) -> bool:
        """Whether a set is used as its recipe says, and nothing is chosen on test data."""
        return (self.learner, self.protocol, self.steps, self.lr) == (
            "auto",
            "validation",
            "auto",
            "auto",
        )

    def settings(self, model: str | None, ipc: int) -> dict[str, Any]:
        """Return what decides the result of one set with one network, as plain data."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("models", "device", "compile"):
            del own[name]
        return {**own, "baselines": sorted(set(self.baselines)), "model": model, "ipc": ipc}
