"""The study of appendix D.9: how joint and boosted sets look.

Source: figures 14 to 16 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from potstill.data.splits import Split
from potstill.distilled.picture import write_grid
from potstill.distilled.sets import DistilledSet
from potstill.reports.plots import Drawing
from potstill.studies.boosting import WEAK, Nested
from potstill.studies.claims import Claim, Finding, compared
from potstill.studies.results import Measurement, Quantity, Results
from potstill.studies.workplace import Point, Subject, Workplace

COSINE = Quantity("cosine", "images per class", where="At {:g} a class")
SIMILARITY, NEAREST = "similarity within a class", "similarity to the nearest real image"
JOINT = "joint"
LOOKS = {"joint": JOINT, "strong": "strong boosting", "weak": "weak boosting"}
"""Names of files -> sets whose looks are compared."""


class Pictures(Nested):
    """Figures 14 to 16."""

    title = "How joint, weakly and strongly boosted sets look"
    quantities = (COSINE,)

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = self.scale(preset, data, steps)
        return [
            Point(f"{name}-seed{seed}", options, self.likeness(LOOKS[name]))
            for seed in seeds
            for name, options in (
                ("joint", scale.joint(scale.ipc, seed)),
                ("strong", scale.boosted(0.0, seed)),
                ("weak", scale.boosted(WEAK, seed)),
            )
        ]

    def likeness(self, way: str) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures cosines between the images, as a network reads them."""

        def measure(subject: Subject) -> list[Measurement]:
            distilled, train = subject.distilled, subject.bench.real.train
            likenesses = {SIMILARITY: within(distilled), NEAREST: nearest(distilled, train)}
            detail = "images as a network reads them"
            return [
                Measurement(
                    COSINE.name, likened(way, name), distilled.ipc, subject.seed,
                    value, None, 1, detail,
                )
                for name, value in likenesses.items()
            ]  # fmt: skip

        return measure

    def figures(
        self,
        results: Results,
        workplace: Workplace,
        points: Sequence[Point],
    ) -> list[Drawing]:
        first = min(row.seed for row in results.rows)
        named = {point.name: point for point in points}
        drawings = []
        for look in LOOKS:
            point = named[f"{look}-seed{first}"]
            write_grid(workplace.run(point), workplace.folder / f"{point.name}.png")
            drawings.append(Drawing(point.name, f"The whole set, {look}, seed {first}"))
        return drawings

    def claims(self, results: Results) -> list[Claim]:
        table = results[COSINE]
        at = table.rows[0].at

        def beside_joint(name: str, expected: int) -> list[Finding]:
            joint = likened(JOINT, name), at
            boosted = [likened(way, name) for way in LOOKS.values() if way != JOINT]
            return [compared(table, (way, at), joint, expected) for way in boosted]

        return [
            Claim(
                "Paper (appendix D.9)",
                "boosted images are more diverse than joint ones",
                beside_joint(SIMILARITY, -1),
            ),
            Claim("Paper (section 5)", "and closer to real images", beside_joint(NEAREST, 1)),
        ]


def likened(way: str, likeness: str) -> str:
    """Name a likeness of some sets."""
    return f"{way}: {likeness}"


def within(distilled: DistilledSet) -> float:
    """Return the mean cosine of two different images of a class."""
    images = F.normalize(distilled.images.flatten(1), dim=1)
    same = distilled.labels[:, None] == distilled.labels
    return float((images @ images.T)[same & ~torch.eye(len(images), dtype=torch.bool)].mean())


def nearest(distilled: DistilledSet, train: Split) -> float:
    """Return the mean cosine of a distilled image and the most similar real one of its class."""
    nearest_cosines = []
    for label in range(len(distilled.class_names)):
        real = train.take(torch.nonzero(train.labels == label)[:, 0])[0].cpu()
        own = distilled.images[distilled.labels == label]
        cosines = F.normalize(own.flatten(1), dim=1) @ F.normalize(real.flatten(1), dim=1).T
        nearest_cosines.append(cosines.max(1).values)
    return float(torch.cat(nearest_cosines).mean())
