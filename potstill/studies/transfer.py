"""The study of other architectures: transfer of a set, against a set distilled for each.

Source: table 3 and "transfer to wide" in table 1 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.config.config import layered, options_from_preset
from potstill.evaluation.bench import Bench
from potstill.evaluation.measuring import RATES
from potstill.models import resolve
from potstill.reports.plots import Drawing, dot_figure
from potstill.studies.claims import Claim, compared
from potstill.studies.results import ACCURACY_BY_SIZE, Measurement, Results
from potstill.studies.workplace import Point, Subject, Workplace, paper_data, small_options

SOURCE, WIDE = "convnet", "convnet-wide"
MODELS = (SOURCE, WIDE, "vgg11", "alexnet", "resnet18")
DIRECT = ("alexnet", "resnet18")
"""Networks that sets are also distilled for, at the least."""
DEEP = ("vgg11", "alexnet", "resnet18")
START = {"real": "real images", "gaussian": "noise"}


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Args:
        options: of every run.
        widths: of each network; "auto" is its default.
        direct: networks that sets are also distilled for.
        start: how the parameters of deep networks start, wherever they train.
        own: options of runs with one of the networks.
    """

    options: Mapping[str, Any]
    widths: Mapping[str, int | str]
    direct: tuple[str, ...] = DIRECT
    start: str = "pytorch"
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def run(self, model: str, seed: int) -> dict[str, Any]:
        """Return the options of a run with this network in its inner loop."""
        chosen = {"model": model, **self.width(model), "seed": seed}
        if self.start_of(model) != "pytorch":
            chosen["network_init"] = self.start_of(model)
        return layered(self.options, self.own.get(model, {}), chosen)

    def start_of(self, model: str) -> str:
        """Return how a network's parameters start."""
        return self.start if model in DEEP else "pytorch"

    def width(self, model: str) -> dict[str, Any]:
        """Return the option that sets a network's width, if it is not the default."""
        return {} if self.widths[model] == "auto" else {"width": self.widths[model]}

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps; None: as it is."""
        return self if steps is None else replace(self, options={**self.options, "steps": steps})

    def __str__(self) -> str:
        known = self.options
        widths = ", ".join(f"{model} {width}" for model, width in self.widths.items())
        return (
            f"{known['steps']:,} outer steps; {known['ipc']} of each class, from "
            f"{START[known['init']]}; T = {known['unroll']}, M = {known['window']}; "
            f"{known['preprocess']}, instance norm; widths: {widths}.{self.beside} "
            "Networks train for the length that is best on validation data among "
            f"{', '.join(map(str, known['lengths']))} steps; {self.others} also with the learning "
            f"rate that is, {' or '.join(f'{rate:g}' for rate in RATES)} times {self.rates}. They "
            "are measured on test data."
        )

    @property
    def others(self) -> str:
        """Which networks train with the better of several learning rates."""
        own = "".join(f" and {model}" for model in self.own)
        return f"other networks than a set's own{own}"

    @property
    def rates(self) -> str:
        """Learning rates that networks train with, or shares of them."""
        return "0.001" if not self.own else "the inner rate"

    @property
    def beside(self) -> str:
        """What of the sizes is not the same for all networks, as sentences."""
        if self.start == "pytorch":
            return ""
        rates = [f"{one['inner_lr']:g} for {model}" for model, one in self.own.items()]
        return (
            f" Deep networks start from --network-init {self.start}. Inner rate 0.001, "
            f"{', '.join(rates)}; the outer rate falls to 0; images are augmented."
        )


def scale_of(preset: str, data: str | None) -> Scale:
    """Return the sizes of a preset.

    "small" runs narrow networks on digits or other small data, "paper" is the paper's setting on
    CIFAR-10.

    Raises:
        InputError: "paper" without data.
    """
    if preset == "small":
        own: dict[str, Any] = {
            "ipc": 1,
            "unroll": 30,
            "window": 10,
            "steps": 100,
            "validate_every": 50,
            "validation_nets": 2,
            "lengths": (100, 300),
            # From noise AlexNet and ResNet-18 stay at chance for so long (validation, other seeds);
            # from real images they learn.
            "init": "real",
        }
        shared = small_options(data)
        if shared["data"] == "digits":
            for name in ("augment", "outer_lr"):
                shared.pop(name)
            own |= {"unroll": 60, "steps": 200, "outer_schedule": "cosine"}
            return Scale(
                {**shared, **own, "precision": "float32"},
                {SOURCE: 32, WIDE: 32, "vgg11": 16, "alexnet": 32, "resnet18": 16},
                DEEP,
                "identity",
                # From the identity a ResNet-18 takes longer to learn anything.
                {"resnet18": {"inner_lr": 0.003}},
            )
        # Images of 32 pixels take some ten times as long, and so does measuring on ten thousand of
        # them.
        shared |= {"unroll": 20, "window": 5, "real_batch": 100, "lengths": (200,)}
        return Scale(
            {**own, **shared}, {SOURCE: 32, WIDE: 16, "vgg11": 8, "alexnet": 16, "resnet18": 8}
        )
    known = {
        **options_from_preset("cifar10-ipc10"),
        "init": "gaussian",
        "data": paper_data(data),
        "lengths": (300, 600, 1000),
    }
    return Scale(known, dict.fromkeys(MODELS, "auto"))


class Transfer:
    """Table 3, and the wide networks of table 1."""

    title = "How far a set carries to other networks"
    quantities = (ACCURACY_BY_SIZE,)

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        return str(scale_of(preset, data).lasting(steps))

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = scale_of(preset, data).lasting(steps)
        points = []
        for seed in seeds:
            points += [
                Point(f"{model}-seed{seed}", scale.run(model, seed), self.direct(model, scale))
                for model in scale.direct
            ]
            points.append(
                Point(f"transfer-seed{seed}", scale.run(SOURCE, seed), self.transfer(scale))
            )
        return points

    def direct(self, model: str, scale: Scale) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a set on the network that it was distilled for."""

        def measured(subject: Subject) -> list[Measurement]:
            bench = bench_for(model, scale, subject) if model in scale.own else subject.bench
            row = bench.of_set(model, subject.distilled, subject.lengths)
            return [Measurement.of(direct(model), row, subject.seed)]

        return measured

    def transfer(self, scale: Scale) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a set of the ConvNet on all networks."""

        def measured(subject: Subject) -> list[Measurement]:
            rows = [
                bench_for(model, scale, subject).of_set(model, subject.distilled, subject.lengths)
                for model in MODELS
            ]
            return [Measurement.of(carried(row.model), row, subject.seed) for row in rows]

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        table = results[ACCURACY_BY_SIZE]
        at = table.rows[0].at
        order = [
            way
            for model in MODELS
            for way in (carried(model), direct(model))
            if table.cell(way, at)
        ]
        dots = [(way, *table.spread(way, at)) for way in order]
        plot = dot_figure(dots, f"test accuracy at {at:g} of each class", percent=True)
        return [
            Drawing(
                "transfer",
                "Table 3's question: a set for the ConvNet on other networks, and sets for them",
                plot,
            )
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[ACCURACY_BY_SIZE]
        at = table.rows[0].at
        own = carried(SOURCE), at
        others = [model for model in MODELS if model not in (SOURCE, WIDE)]
        return [
            Claim(
                "Paper (table 3)",
                "distilling for a network is better than carrying a set to it",
                [
                    compared(table, (direct(way), at), (carried(way), at), 1)
                    for way in DEEP
                    if table.cell(direct(way), at)
                ],
            ),
            Claim(
                "Paper (table 1)",
                "a wide ConvNet does better on the same set, by 0.1 to 1.6 points on CIFAR-10",
                [compared(table, (carried(WIDE), at), own, 1)],
            ),
            Claim(
                "Paper (tables 1 and 3)",
                "other networks do worse than the one that it was distilled for",
                [compared(table, (carried(model), at), own, -1) for model in others],
            ),
        ]


def carried(model: str) -> str:
    """Name the networks of a kind that train on the ConvNet's set."""
    return f"{model}, on the ConvNet's set"


def direct(model: str) -> str:
    """Name the networks of a kind that train on a set of their own."""
    return f"{model}, on its own set"


def bench_for(model: str, scale: Scale, subject: Subject) -> Bench:
    """Return the subject's bench with other networks, at the learning rate that suits them."""
    bench, distilled = subject.bench, subject.distilled
    if model == SOURCE:
        return bench
    factory = resolve(
        model,
        distilled.shape,
        len(distilled.class_names),
        norm=distilled.recipe.norm,
        network_init=scale.start_of(model),
        **scale.width(model),
    )
    rate = scale.own.get(model, {}).get("inner_lr", distilled.recipe.lr)
    rates = tuple(factor * rate for factor in RATES)
    return replace(bench, factory=factory, model=model, rates=rates)
