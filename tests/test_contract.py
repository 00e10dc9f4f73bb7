"""The contract of parts: kept by all of ours and by a stranger's, and each rule fails for who
breaks it.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from foreign.means import Means
from test_runs import bytes_of
from torch import nn

import potstill
from potstill.cache import Cache
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.config.options import Auto, declared, option
from potstill.data.arrays import array_hash
from potstill.data.sources import read_digits
from potstill.data.splits import Arrays, Dataset
from potstill.distillation import run_folder
from potstill.errors import InputError
from potstill.parameterisations.base import Reduced
from potstill.parameterisations.formation import MultiFormation
from potstill.parameterisations.pixels import Pixels
from potstill.registry import METHODS, MODELS, PARAMETERISATIONS
from potstill.testing import (
    ContractError,
    check_method,
    check_model,
    check_parameterisation,
    check_source,
    small_problem,
)

FOREIGN, TRUSTED = "foreign.means:Means", ("--trust", "foreign")


@pytest.mark.parametrize("name", [*METHODS, FOREIGN])
def test_every_method_keeps_to_the_contract(name, tmp_path):
    potstill.trust("foreign")
    names = {item.name for item, _ in declared(METHODS[name].Options)}
    sizes = {"unroll": 6, "window": 3, "grow_over": 10}
    sizes |= {"experts": 2, "expert_batch": 10, "student_steps": 5, "max_start": 3}
    if name == "imported":
        problem = small_problem()
        shape = (len(problem.labels), *problem.networks.shape)
        torch.save(torch.zeros(shape), tmp_path / "set.pt")
        sizes["set_images"] = str(tmp_path / "set.pt")
    small = {key: value for key, value in sizes.items() if key in names}
    options = METHODS[name].Options(**small) if small else None
    problems = {
        "idc": small_problem(model="convnet"),
        "haba": dataclasses.replace(small_problem(), sharing=2),
    }
    check_method(name, options, problem=problems.get(name))


@pytest.mark.parametrize("name", list(PARAMETERISATIONS))
def test_every_parameterisation_keeps_to_the_contract(name):
    part = PARAMETERISATIONS[name]
    check_parameterisation(name, part.Options(hallucinators=2) if name == "factorised" else None)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_keeps_to_the_contract(name):
    check_model(name, (1, 8, 8), 3)


def test_a_source_keeps_to_the_contract():
    check_source("digits")


class Wrong(Means):
    """A method that breaks a rule; subclasses say which."""


class ChangesWhatItGets(Wrong):
    def estimate(self, examples, learned, state, step):
        examples.images.mul_(0.9)
        return super().estimate(examples, learned, state, step)


class DrawsFromTheGlobalGenerator(Wrong):
    def estimate(self, examples, learned, state, step):
        found = super().estimate(examples, learned, state, step)
        noisy = found.grads["images"] + torch.randn_like(found.grads["images"])
        return dataclasses.replace(found, grads={**found.grads, "images": noisy})


class GivesStrangeGradients(Wrong):
    def estimate(self, examples, learned, state, step):
        found = super().estimate(examples, learned, state, step)
        return dataclasses.replace(found, grads={**found.grads, "pictures": found.grads["images"]})


class GivesNaN(Wrong):
    def estimate(self, examples, learned, state, step):
        found = super().estimate(examples, learned, state, step)
        return dataclasses.replace(
            found, grads={**found.grads, "images": found.grads["images"] * float("nan")}
        )


class GoesUphill(Wrong):
    def estimate(self, examples, learned, state, step):
        found = super().estimate(examples, learned, state, step)
        return dataclasses.replace(found, grads={**found.grads, "images": -found.grads["images"]})


class KeepsAnObject(Wrong):
    def estimate(self, examples, learned, state, step):
        found = super().estimate(examples, learned, state, step)
        return dataclasses.replace(found, state={**found.state, "path": Path("x")})


class ForgetsItsState(Wrong):
    """Keeps on the instance what belongs in the state."""

    calls = 0

    def estimate(self, examples, learned, state, step):
        type(self).calls += 1
        found = super().estimate(examples, learned, {**state, "seen": self.own}, step)
        self.own = self.own + 1
        return found

    own = 0


class NamesAnOptionOfTheHouse(Wrong):
    @dataclass(frozen=True)
    class Options:
        steps: int = option(3, "steps of its own")
        faith: float = option(0.5, "as before")
        mean_batch: int = option(40, "as before")


class HasAnUnfrozenOption(Wrong):
    @dataclass
    class Options:
        faith: float = option(0.5, "as before")
        mean_batch: int = option(40, "as before")


class HasAPlainField(Wrong):
    @dataclass(frozen=True)
    class Options:
        faith: float = option(0.5, "as before")
        mean_batch: int = 40


class SaysNothing(Wrong):
    @dataclass(frozen=True)
    class Options:
        faith: float = option(0.5, " ")
        mean_batch: int = option(40, "as before")


class WantsWhatIsNotThere(Wrong):
    defaults: ClassVar[dict] = {"outer_lr": 1.0, "outer_optimizer": "sgd", "outer_speed": 3}


class SpeaksInNumbers(Wrong):
    @classmethod
    def words(cls, options):
        return [("Faith", options.faith)]


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            ChangesWhatItGets,
            "must not change the examples or the state that it is given, it does at step 0",
        ),
        (
            DrawsFromTheGlobalGenerator,
            r"must draw everything from \(seed, step\), as problem.rng does, two estimates at "
            r"step 0",
        ),
        (GivesStrangeGradients, "must give gradients of images, scale only, got pictures"),
        (
            GivesNaN,
            "must give finite numbers on a small problem, the gradient of images or the loss is "
            "not",
        ),
        (GoesUphill, "must lower its own loss in 30 steps on a small problem, it went from"),
        (
            KeepsAnObject,
            "must have a state of tensors and plain data, by names, Object of type PosixPath",
        ),
        (
            ForgetsItsState,
            "must go on from a checkpoint as if nothing had happened, another set came out",
        ),
        (NamesAnOptionOfTheHouse, "must name its options otherwise than potstill's own, got steps"),
        (HasAnUnfrozenOption, "must have a frozen dataclass of options, got Options"),
        (HasAPlainField, "must declare every field of Options with potstill.config.options.option"),
        (SaysNothing, "must say what its option faith is, the help text is empty"),
        (WantsWhatIsNotThere, "must name options of potstill in defaults, got outer_speed"),
        (SpeaksInNumbers, r"must give a list of \(term, value\) texts from words\(\), got"),
    ],
)
def test_each_rule_for_methods_fails_for_who_breaks_it(method, sentence):
    with pytest.raises(
        ContractError, match=rf"^{__name__}:{method.__name__} {sentence}.*; this protects "
    ):
        check_method(method)


def test_what_is_no_method_is_told():
    with pytest.raises(
        ContractError,
        match=r"must have 'estimate' \(derive from potstill.methods.base.Method\), it has none",
    ):
        check_method(Reduced)
    with pytest.raises(
        InputError, match=r"module 'foreign.means' has no 'Mean' \(did you mean 'Means'"
    ):
        check_method("foreign.means:Mean")


@dataclass(frozen=True)
class TooLarge(Pixels):
    @property
    def shapes(self):
        return {"images": (2 * self.budget.classes * self.budget.ipc, *self.budget.shape)}


@dataclass(frozen=True)
class Detached(MultiFormation):
    def decode(self, leaves):
        return super().decode({"images": leaves["images"].detach()}).requires_grad_()


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (TooLarge, r"must store at most the budget's 5,760 numbers, it stores 11,520"),
        (Detached, "must decode differentiably in every leaf, images gets no gradient"),
    ],
)
def test_each_rule_for_parameterisations_fails_for_who_breaks_it(part, sentence):
    with pytest.raises(ContractError, match=rf"{part.__name__} {sentence}"):
        check_parameterisation(part)


class Rounded(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, inputs):
        hidden = self.head(inputs.flatten(1))
        return hidden + (hidden.round() - hidden.square()).detach()


def test_a_model_that_cannot_be_differentiated_twice_is_told():
    with pytest.raises(
        ContractError, match=r"must be differentiable throughout.*this protects every derivative"
    ):
        check_model(Rounded, (1, 8, 8), 3)


def test_a_source_that_gives_other_content_each_time_is_told():
    def restless(rest, config):
        images = torch.rand(9, 1, 4, 4).numpy()
        return Dataset(
            Arrays(images, torch.arange(9).numpy() % 3), None, ("a", "b", "c"), array_hash(images)
        )

    def unnamed(rest, config):
        return dataclasses.replace(read_digits(rest, config), class_names=("0", "1"))

    with pytest.raises(
        ContractError,
        match=r"must give the same fingerprint for the same content, two readings differ",
    ):
        check_source(restless)
    with pytest.raises(
        ContractError, match=r"must have labels of train in 0 .. K-1, got 0 to 9 for 2 class names"
    ):
        check_source(unnamed)


# A stranger's method in whole runs.
QUICK = {
    "method": FOREIGN,
    "model": "mlp",
    "width": 16,
    "depth": 1,
    "steps": 12,
    "validate_every": 3,
    "checkpoint_every": 4,
    "lengths": (5,),
    "validation_nets": 1,
    "ipc": 2,
    "threads": 1,
    "faith": 0.25,
    "preprocess": "normalize",
}


def words_of(**options) -> list[str]:
    found = []
    for name, value in {**QUICK, **options}.items():
        found += [
            "--" + name.replace("_", "-"),
            ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
        ]
    return found


def run(*words: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which finds the stranger's package and keeps a
    cache of its own.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    environment |= {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "potstill.cli.parser", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_strangers_method_distils_resumes_boosts_evaluates_reports_and_exports(tmp_path):
    whole, cut, boosted = (tmp_path / name for name in ("whole", "cut", "boosted"))
    assert run("distill", "--out", whole, *words_of(), cache=tmp_path).returncode == 0
    (kept,) = (tmp_path / "potstill" / "prepared").glob("*.safetensors")  # prepared once
    stamp = kept.stat().st_mtime_ns
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):  # between checkpoints, as a kill would
        potstill.distill(**QUICK, out=cut, listener=potstill_listener(steps, 10))
    assert [path.stem for path in run_folder.RunFolder(cut).checkpoints.files] == [
        "step-00000004",
        "step-00000008",
    ]
    refused = run("distill", "--resume", cut, cache=tmp_path)
    assert refused.returncode == 2
    assert f"method {FOREIGN} is named by a file, and using it would run the" in refused.stderr
    assert run("distill", "--resume", cut, *TRUSTED, cache=tmp_path).returncode == 0
    assert bytes_of(cut) == bytes_of(whole)
    assert kept.stat().st_mtime_ns == stamp
    assert "learned" in potstill.load(whole).meta
    assert potstill.load(whole).meta["config"]["method"] == {
        "method": FOREIGN,
        "faith": 0.25,
        "mean_batch": 40,
    }
    flags = words_of(ipc=2, boost_blocks=2, boost_beta=0.1)
    assert run("distill", "--out", boosted, *flags, cache=tmp_path).returncode == 0
    assert potstill.load(boosted).budgets == (1, 2)
    evaluated = run("evaluate", whole, "--nets", 2, "--baseline", "random", cache=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    words = ("report", whole, "--out", tmp_path / "page.html", *TRUSTED)
    assert run(*words, cache=tmp_path).returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert "0.25 in the means of all images" in page
    assert FOREIGN in page
    exported = run("export", whole, "--format", "npz", "--out", tmp_path / "x.npz", cache=tmp_path)
    assert exported.returncode == 0, exported.stderr
    # As one who has the file and no package of the stranger's.
    copied = tmp_path / "shared.safetensors"
    shutil.copy(whole / "distilled.safetensors", copied)
    alone = [sys.executable, "-m", "potstill.cli.parser", "evaluate", str(copied), "--nets", "1"]
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 0
    refused = run("diagnose", whole, *TRUSTED, cache=tmp_path)
    assert refused.returncode == 2
    assert f"the noise of {FOREIGN} cannot be taken apart, it does not unroll" in refused.stderr
    assert "Traceback" not in refused.stderr


def potstill_listener(steps: list[int], last: int):
    from potstill.progress import Listener

    def step(record, total):
        steps.append(record.step)
        if record.step == last:
            raise KeyboardInterrupt

    return Listener(step=step)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--method", "foreign.means:Mean"],
            "module 'foreign.means' has no 'Mean' (did you mean 'Means'?)",
        ),
        (
            ["--method", "foreign.mean:Means"],
            "cannot import 'foreign.mean' of 'foreign.mean:Means': ModuleNotFoundError",
        ),
        (["--method", FOREIGN, "--faith", "2"], "faith must be at least 0 and at most 1, got 2.0"),
        (
            ["--method", FOREIGN, "--window", "3"],
            f"--window has no effect with --method {FOREIGN}; it belongs to --method rat-bptt, "
            "t-bptt",
        ),
        (
            ["--method", FOREIGN, "--real-batch", "3"],
            "--real-batch has no effect with --method foreign.means:Means; leave it out",
        ),
        (
            ["--method", FOREIGN, "--learn-labels"],
            "--learn-labels has no effect with --method foreign.means:Means; leave it out",
        ),
        (["--faith", "0.5"], "unknown argument '--faith'"),
    ],
)
def test_wrong_use_of_a_strangers_method_is_told_in_a_sentence(flags, sentence, capsys):
    assert main(["distill", *flags]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_the_help_of_a_strangers_method_shows_its_options_and_what_it_wants(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "--method", FOREIGN, "--help"])
    told = capsys.readouterr().out
    assert "--faith X" in told
    assert "share of the whole data's means beside a running one [0.5]" in told
    assert "--outer-momentum X" in told
    assert "factor on the velocity [0.5]" in told
    assert "--window" not in told
    assert "--real-batch" not in told


def test_a_cache_builds_once_over_processes_and_again_after_damage(tmp_path):
    built: list[int] = []

    def build():
        built.append(1)
        return {"x": torch.arange(3.0)}

    one = Cache(tmp_path, ["data", {"option": 1}])
    assert torch.equal(one.get("x", build)["x"], torch.arange(3.0))
    assert one.get("x", build) is one.get("x", build)
    again = Cache(tmp_path, ["data", {"option": 1}])
    assert torch.equal(again.get("x", build)["x"], torch.arange(3.0))
    assert len(built) == 1
    Cache(tmp_path, ["other data", {"option": 1}]).get("x", build)
    again.get("y", build)
    assert len(built) == 3
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(
        Cache(tmp_path, ["data", {"option": 1}]).get("x", build)["x"], torch.arange(3.0)
    )
    assert len(built) == 4
    assert Cache(None).get("x", build)["x"] is not None
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        InputError, match=r"cannot write the cache folder .*file.*; give another with --cache-dir"
    ):
        Cache(blocked / "in it").get("x", build)


SLOW = """
import sys, time
from pathlib import Path
import torch
from potstill.cache import Cache

def build():
    with open(sys.argv[2], "a") as file:
        file.write("built\\n")
    time.sleep(1)
    return {"x": torch.ones(2)}

print(Cache(Path(sys.argv[1])).get("slow", build)["x"].sum().item())
"""


def test_two_processes_that_want_the_same_prepare_it_once(tmp_path):
    command = [sys.executable, "-c", SLOW, str(tmp_path / "cache"), str(tmp_path / "log")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["2.0", "2.0"]
    assert (tmp_path / "log").read_text() == "built\n"


@dataclass(frozen=True)
class Lazy:
    """Options that keep an "auto" for themselves."""

    size: int | Auto = option("auto", "of something")

    def resolved(self, sizes):
        return self


def test_a_part_that_leaves_an_auto_is_told():
    chosen = dataclasses.replace(configuration().method, name="lazy", options=Lazy())
    with pytest.raises(
        InputError, match=r"Options.resolved of lazy must replace every 'auto', it leaves size"
    ):
        chosen.resolved(None)
    assert dataclasses.replace(chosen, options=Lazy(3)).resolved(None).options == Lazy(3)
