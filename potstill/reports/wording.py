"""What a report says of a run: headline, key figures, terms and their values, commands."""

import math
import shlex
from datetime import datetime
from pathlib import Path

from rich.filesize import decimal

from potstill.config.durations import in_words
from potstill.config.options import declared
from potstill.config.slots import unused
from potstill.data.layouts import listed
from potstill.data.splits import Shape
from potstill.distillation.checkpoints import CONFIG
from potstill.distilled.artefact import ARTEFACT, file_words
from potstill.evaluation.learners import Learner
from potstill.evaluation.records import worse_than_random
from potstill.parameterisations.base import FLOAT_BYTES
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS, METHODS
from potstill.reports.places import shown_data
from potstill.reports.run_summary import RunSummary

STARTS_IN_WORDS = {"gaussian": "noise", "normal": "noise", "real": "real {}s"}
CHANNELS = {1: "grey", 3: "colour"}
Fact = tuple[str, str]
"""A term, and its value in words."""


def headline(run: RunSummary) -> str:
    """Say what was distilled into what."""
    of_data = f" of {run.data_name}" if run.data_name else ""
    if run.finished and run.distilled and run.counts:
        pixels = run.distilled.ipc * len(run.distilled.class_names)
        room = f", stored in the room of {pixels:,}" * run.distilled.decoded
        return f"{run.counts['train']:,} {run.noun}s{of_data} became {len(run.distilled):,}{room}"
    ipc, room = run.config.distilled.ipc, "the room of " * run.config.decoded
    return f"{run.data_name or 'Arrays'} in {room}{ipc:,} {run.noun}{'s'[: ipc > 1]} per class"


def lede(run: RunSummary) -> str:
    """Say how good the set is, in plain words, and which images that was measured on."""
    test, random, validation = run.test("distilled"), run.test("random"), run.validation
    if test and run.distilled:
        words = (
            f"{learning_from(run)} these {len(run.distilled):,} {run.kind} {run.noun}s alone "
            f"({run.distilled.stored_bytes:,} bytes) are right on {percent(test[0])} of "
            f"{test[1].record.test_images:,} test {run.noun}s, which neither they nor the "
            "distillation ever saw."
        )
        if random:
            words += f" On {of_random(run)}, picked at random, they reach {percent(random[0])}."
        full = run.test("full")
        if full:
            words += f" On all real {run.noun}s they reach {percent(full[0])}."
        if random:
            steps, classes = run.log.done or None, len(run.distilled.class_names)
            told = worse_than_random(test[0], random[0], steps, classes, run.noun)
            words += f" {told[:1].upper()}{told[1:]}." if told else ""
        return words
    if run.finished and validation:
        chosen = "how long to train" if learner_of(run).trains else "the outer step"
        return (
            f"{learning_from(run)} these {run.kind} {run.noun}s alone are right on "
            f"{percent(validation)} of the validation {run.noun}s. Those {run.noun}s also chose "
            f"{chosen}, so this is no test result."
        )
    return ""


def audited(run: RunSummary) -> list[str]:
    """Say in sentences what an audit has found; [] if there is none."""
    if run.audit is None:
        return []
    record, near = run.audit, run.audit.neighbours
    areas = ", ".join(
        f"{one.auc.mean:.3f}"
        + (f" ± {one.auc.std:.3f}" if one.auc.std is not None else "")
        + f" for networks trained on {one.trained_on}"
        for one in record.attacks
    )
    count = record.attacks[0].auc.n
    return [
        f"Whether a real {record.noun} was among the {record.members:,} that were distilled is "
        "guessed from the loss of a network. The area under the curve of that attack is "
        f"{areas}; 0.5 is a guess (n = {count} networks each).",
        f"{near.nearer} of {near.count} of the {run.kind} {record.noun}s are nearer to a real "
        f"training {record.noun} than 99 % of test {record.noun}s are (distance "
        f"{near.synthetic[0]:.2f} at the least, {near.real[0]:.2f} of test {record.noun}s). No "
        "guarantee follows from these numbers.",
    ]


def learner_of(run: RunSummary) -> type[Learner]:
    """Return what the set of a run was made for."""
    learner: type[Learner] = LEARNERS[run.distilled.recipe.learner if run.distilled else "network"]
    return learner


def learning_from(run: RunSummary) -> str:
    """Begin a sentence with what learns from the set of a run."""
    subject = learner_of(run).subject
    return subject[:1].upper() + subject[1:]


def tiles(run: RunSummary) -> list[Fact]:
    """Return the few numbers to see first, each with what it counts."""
    lines: list[Fact] = []
    if run.distilled:
        each = run.distilled.per_class
        lines.append(
            (
                f"{len(run.distilled):,}",
                f"{run.kind} {run.noun}s, {each:,} for each of {len(run.distilled.class_names):,} "
                "classes",
            )
        )
    if run.distilled and run.counts:
        real, shape = run.counts["train"], run.distilled.shape
        if run.config.decoded:
            less = real * math.prod(shape) * FLOAT_BYTES / run.distilled.stored_bytes
            lines.append((f"{less:,.0f}×", f"fewer numbers than in the {real:,} real {run.noun}s"))
        else:
            lines.append(
                (f"{real / len(run.distilled):,.0f}×", f"fewer than the {real:,} real {run.noun}s")
            )
        lines.append((f"{run.distilled.stored_bytes:,}", "bytes stored"))
    test, random, validation = run.test("distilled"), run.test("random"), run.validation
    if test:
        lines.append((percent(test[0]), f"test accuracy, {networks(test[0])}"))
    elif validation:
        lines.append((percent(validation), f"validation accuracy, {networks(validation)}"))
    if random:
        lines.append((percent(random[0]), f"the same on {of_random(run)}, chosen at random"))
    return lines


def of_random(run: RunSummary) -> str:
    """Name the real examples that the set is compared with."""
    ipc = run.config.distilled.ipc
    budget = f"{ipc:,} real {run.noun}{'s'[: ipc > 1]} of each class"
    return budget if run.config.decoded else f"as many real {run.noun}s"


def percent(figure: Figure) -> str:
    """Write a fraction with its standard deviation in per cent, without line breaks."""
    return str(figure).rpartition(" (n")[0].replace(" ", "\N{NO-BREAK SPACE}")


def networks(figure: Figure) -> str:
    """Say how many networks a figure is a mean over."""
    return f"mean of {figure.n:,} networks" if figure.n > 1 else "one network"


def progress(run: RunSummary) -> str:
    """Say how many outer steps are done, of how many."""
    return f"{run.log.done:,} of {run.config.all_steps:,}"


def facts(run: RunSummary) -> dict[str, list[Fact]]:
    """Return heading -> terms with their values."""
    return {
        "The data": data_facts(run),
        "The set": set_facts(run),
        "The outer loop": making_facts(run),
        "The run": run_facts(run),
    }


def data_facts(run: RunSummary) -> list[Fact]:
    """Describe the data."""
    lines = [("Source", shown_data(run.config.data).replace(":", " ", 1))]
    for split, use in (
        ("train", "distilled from"),
        ("validation", "held out for every choice"),
        ("test", "only measured on"),
    ):
        if split in run.counts:
            origin = run.origins.get(split)
            where = f"; {origin}" if origin else ""
            term = f"{split.capitalize()} {run.noun}s"
            lines.append((term, f"{run.counts[split]:,}, {use}{where}"))
    if run.distilled:
        lines.append(
            (f"A{'n' * (run.noun == 'image')} {run.noun}", shape_words(run.distilled.shape))
        )
        names = run.distilled.class_names
        lines.append(("Classes", f"{len(names):,}: {listed(names, counted=False)}"))
    data = run.data
    if data and data.disk_bytes:
        lines.append(("On disk", f"{decimal(data.disk_bytes)}, all splits"))
    if data and data.values and len(data.values) == 2:
        low, high = data.values
        lines.append(("Values", f"{low:.4g} to {high:.4g}" + ", bytes as 0 to 1" * (high <= 1)))
    if data and data.left_out:
        lines.append(("Left out", "; ".join(data.left_out)))
    words = run.distilled.fitted.words.get(run.distilled.kind) if run.distilled else None
    return [*lines, ("Preprocessing", words or run.config.preprocessing.name)]


def shape_words(shape: Shape) -> str:
    """Say what an example is, as in "32 × 32 pixels, colour" or "13 features"."""
    if len(shape) == 1:
        return f"{shape[0]:,} feature{'s'[: shape[0] > 1]}"
    channels, height, width = shape
    return f"{width} × {height} pixels, {CHANNELS.get(channels, f'{channels} channels')}"


def set_facts(run: RunSummary) -> list[Fact]:
    """Describe the set and how networks train on it."""
    distilled, inner, model = run.config.distilled, run.config.inner, run.config.model
    lines = [
        (
            f"{run.noun.capitalize()}s per class",
            f"{distilled.ipc:,}" + ", whose bytes what is stored takes" * run.config.decoded,
        ),
        *stored_facts(run),
        (
            "Labels",
            f"soft, learned with the {run.noun}s"
            if distilled.learn_labels
            else "hard, one class each",
        ),
    ]
    if "init" not in unused({"method": run.config.method.name}):
        start = STARTS_IN_WORDS.get(distilled.init, "another set").format(run.noun)
        lines.append(("Started from", start))
    if distilled.boost_blocks > 1:
        lines.append(
            ("Blocks", f"{distilled.boost_blocks:,}; the first ones are sets of their own")
        )
        lines.append(
            (
                "Earlier blocks",
                f"at {distilled.boost_beta:g} of the learning rate"
                if distilled.boost_beta
                else "frozen",
            )
        )
    known = ", ".join(
        f"{item.name} {getattr(model.options, item.name)}"
        for item, _ in declared(type(model.options))
    )
    lines.append(("Network", f"{model.name}, {known}" if known else model.name))
    lr = run.distilled.recipe.lr if run.distilled else inner.inner_lr
    lines.append(("It trains by", f"{run.config.inner_optimizer.name}, learning rate {lr:.3g}"))
    if run.finished and run.distilled and learner_of(run).trains:
        lines.append(
            ("for", f"{run.distilled.recipe.steps:,} steps, chosen on validation {run.noun}s")
        )
    return [*lines, ("Augmentation", ", ".join(inner.augment) or "none")]


def stored_facts(run: RunSummary) -> list[Fact]:
    """Describe what is stored."""
    if not run.distilled:
        return []
    lines = [("Parameterisation", run.config.parameterisation.name)] if run.config.decoded else []
    lines.append(("Stored", run.distilled.stored))
    file = run.path / ARTEFACT
    return (
        [*lines, ("File", file_words(run.distilled, file))]
        if run.finished and file.is_file()
        else lines
    )


def making_facts(run: RunSummary) -> list[Fact]:
    """Describe the outer loop."""
    outer, method = run.config.outer, run.config.method
    line = (
        METHODS.rows[method.name][1].removesuffix(" (default)")
        if method.name in METHODS.rows
        else ""
    )
    lines = [
        ("Method", f"{method.name}, {line}" if line else method.name),
        *METHODS[method.name].words(method.options),
        ("Outer steps", progress(run)),
    ]
    step = run.distilled.metadata.outer_step if run.distilled else None
    if step is not None:
        block = " of the last block" if run.config.distilled.boost_blocks > 1 else ""
        lines.append(
            ("Set kept", f"after step {step:,}{block}, the best on validation {run.noun}s")
        )
    if "real_batch" in run.config.flat():  # some methods have a batch of their own
        lines.append((f"Real {run.noun}s in a step", f"{outer.real_batch:,}"))
    if run.config.decoded and run.log.decoding == run.log.decoding:
        lines.append(("Decoding", f"{100 * run.log.decoding:.1f} % of the time"))
    mover = run.config.outer_optimizer.name
    lines += sampler_facts(run)
    if "outer_optimizer" not in unused({"method": run.config.method.name}):
        lines.append(("The set moves by", f"{mover}, learning rate {float(outer.outer_lr):.3g}"))
    return lines


def sampler_facts(run: RunSummary) -> list[Fact]:
    """Say how real images are drawn, and how long scoring them took."""
    named = Path(run.config.data.weights).name
    by = f"by weights of their own{f' ({named})' if named else ''}"
    lines = [(f"Real {run.noun}s are drawn", by)] if run.weighted else []
    words = run.config.real_sampler.options.words()
    if not words:
        return lines
    cost = f", which took {100 * run.log.scoring:.1f} % of the time" if run.log.scoring else ""
    return [*lines, (f"Real {run.noun}s are weighed", words + cost)]


def run_facts(run: RunSummary) -> list[Fact]:
    """Say when and where the run was made, and with which versions."""
    versions = run.distilled.metadata.versions if run.distilled else {}
    lines = [("Started", moment(run.begun))]
    if run.changed:
        lines.append(("Finished" if run.finished else "Last step logged", moment(run.changed)))
    seconds = run.log.values["seconds"]
    if len(seconds):
        lines.append(("Time in outer steps", in_words(float(seconds[seconds == seconds].sum()))))
    lines += [
        ("Device", f"{run.config.run.device}, {run.config.inner.precision}"),
        ("Threads", str(run.config.run.threads)),
    ]
    lines.append(("Seed", str(run.config.run.seed)))
    return lines + [
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()))
    ] * bool(versions)


def moment(time: datetime) -> str:
    """Write a date, to the minute."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def commands(run: RunSummary) -> list[Fact]:
    """Return (purpose, command); commands that need arrays given in Python are left out."""
    folder = shlex.quote(run.place)
    arrays = run.config.data.data == "arrays"
    if not run.finished:
        return [] if run.in_python else [("Go on", f"potstill distill --resume {folder}")]
    format = "csv" if run.noun == "row" else "folder"
    lines = [(f"Save the {run.noun}s", f"potstill export {folder} --format {format}")]
    budgets = " --all-budgets" if run.config.distilled.boost_blocks > 1 else ""
    if arrays:
        return lines
    measure = (
        f"Measure it on test {run.noun}s",
        f"potstill evaluate {folder} --nets 10 --baseline random{budgets}",
    )
    if run.weights_in_python:  # they are in no file
        return [measure, *lines]
    again = (
        f"potstill distill --config {shlex.quote(f'{run.place}/{CONFIG}')} --out "
        f"{shlex.quote(f'{run.place}-again')}"
    )
    return [measure, *lines, ("Make it again", again)]
