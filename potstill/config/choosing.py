"""Which method suits a run: by what the study of methods measured, at the nearest setting.

`measured_methods.json` holds the study's figures; benchmarks/tables.py makes it from the results in
docs/studies.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from potstill.config.config import (
    Layer,
    configuration,
    layered,
    options_from_preset,
    options_of_run,
    preset_names,
)
from potstill.config.durations import in_words
from potstill.config.sections import DataConfig
from potstill.config.slots import method_slot, unused
from potstill.errors import InputError

AUTO = "auto"
LARGER = ("haba",)
"""Methods that had more images than the others: bases need the room of the networks beside them."""
TABLE = "measured_methods.json"
DROPPED = (
    "data", "image_size", "ipc", "steps", "validate_every", "time_budget", "augment", "average",
)  # fmt: skip
"""Options of presets that are of their data, or of their length."""
LASTING = {"steps", "time_budget", "validate_every", "checkpoint_every", "keep_checkpoints"}
"""What a run that takes one step does not need to be told."""
BY_TIME = ((180.0, "quick"), (1800.0, "standard"), (math.inf, "long"))
"""Seconds up to which a preset of the default method is for."""


@dataclass(frozen=True)
class Setting:
    """What every method reached at one setting.

    Args:
        data: their name.
        shape: of an example.
        ipc: images per class.
        seconds: of each run.
        accuracy: method -> (mean, standard deviation over seeds or None), fractions, on networks of
            one kind under one protocol.
    """

    data: str
    shape: tuple[int, ...]
    ipc: int
    seconds: float
    accuracy: Mapping[str, tuple[float, float | None]]

    def distance(self, shape: tuple[int, ...], ipc: int, seconds: float | None) -> float:
        """Return how far another setting is: the sum of how many times as large each thing is."""
        ratios = [math.prod(shape) / math.prod(self.shape), ipc / self.ipc]
        ratios += [] if seconds is None else [seconds / self.seconds]
        return sum(abs(math.log(ratio)) for ratio in ratios)


def settings() -> list[Setting]:
    """Read the settings that were measured."""
    text = (resources.files("potstill.config") / TABLE).read_text(encoding="utf-8")
    return [
        Setting(
            one["data"],
            tuple(one["shape"]),
            one["ipc"],
            one["seconds"],
            {method: (mean, std) for method, (mean, std) in one["accuracy"].items()},
        )
        for one in json.loads(text)
    ]


def options_for(method: str, seconds: float | None = None) -> dict[str, Any]:
    """Return the options of a method for a short run on small data: those of its quick preset.

    The default method and its kin have presets by time.

    Args:
        method: its name.
        seconds: of the run; None: a short one.
    """
    name = f"{method}-quick-mnist"
    if name not in {known for known, _ in preset_names()}:
        name = next(preset for most, preset in BY_TIME if (seconds or 0) <= most)
    known = {**options_from_preset(name), "method": method}
    has = {option.name for option in options_of_run(known)}
    return {name: value for name, value in known.items() if name in has and name not in DROPPED}


def best(setting: Setting) -> tuple[str, str]:
    """Return the method to take at a setting, and why.

    It is the best one, but the default where that is as good, give or take both deviations.
    """
    default = method_slot.default
    alike = [name for name in setting.accuracy if name not in LARGER]
    ranked = sorted(alike, key=lambda name: -setting.accuracy[name][0])
    (mean, std), (usual, of_usual) = (setting.accuracy[name] for name in (ranked[0], default))
    apart = math.hypot(std or 0.0, of_usual or 0.0)
    if ranked[0] == default:
        second = ranked[1]
        return default, f"{percent(mean)}, {second} {percent(setting.accuracy[second][0])}"
    if mean - usual <= apart:
        return default, (
            f"{percent(usual)}, as good as {ranked[0]}, {percent(mean)}, give or take "
            f"{percent(apart)}"
        )
    return ranked[0], f"{percent(mean)}, {default} {percent(usual)}"


def percent(fraction: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * fraction:.1f} %"


def asked(*layers: Layer) -> bool:
    """Return whether the method is to be chosen: the last layer that names one decides."""
    named = [layer["method"] for layer in layers if "method" in layer]
    return bool(named) and named[-1] == AUTO


def of_data(*layers: Layer) -> dict[str, Any]:
    """Return those of the options that say which data are read, and how."""
    names = {item.name for item in fields(DataConfig)}
    return {name: value for layer in layers for name, value in layer.items() if name in names}


def with_method(shape: tuple[int, ...], *layers: Layer) -> tuple[dict[str, Any], str]:
    """Return the options with a method that suits them, and why it does.

    Its own options come before those of all layers but the last, whose are the user's.

    Args:
        shape: of an example of the data.
        *layers: the options that are given, later ones first.
    Raises:
        InputError: an option is wrong, or has no effect with that method.
    """
    *lower, last = [
        {name: value for name, value in layer.items() if (name, value) != ("method", AUTO)}
        for layer in layers
    ]
    given = {**layered(*lower), **last}
    known = configuration({name: given[name] for name in ("ipc", "time_budget") if name in given})
    ipc, seconds = known.distilled.ipc, known.outer.budget_seconds or None
    measured = settings()
    if len(shape) != 3 or not measured:
        method, own = method_slot.default, {"method": method_slot.default}
        why = "methods were compared on images, these data are rows"
    else:
        setting = min(measured, key=lambda one: one.distance(shape, ipc, seconds))
        method, figures = best(setting)
        own = options_for(method, seconds)
        why = (
            f"of {len(setting.accuracy)} methods on {setting.data}, {setting.ipc} of each class "
            f"in {in_words(setting.seconds)}, the measured setting nearest to this one: {figures} "
            "on test"
        )
    idle = LASTING & {*unused({"method": method})}
    *lower, last = [
        {name: value for name, value in layer.items() if name not in idle}
        for layer in (*lower, last)
    ]
    merged = layered(*lower, own, last)
    try:
        configuration(merged)
    except InputError as error:
        raise InputError(f"{error} (it is method auto that chose {method})") from error
    return merged, f"method auto: {method} ({why})"
