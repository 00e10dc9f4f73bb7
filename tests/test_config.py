"""One set of options for Python, TOML and the command line."""

import tomllib
from importlib import resources

import pytest

import potstill
from potstill.cli.flags import make_parser
from potstill.cli.parser import options_of_chosen
from potstill.config.config import (
    changed,
    configuration,
    layered,
    options_from_file,
    options_from_preset,
    options_from_toml,
    options_of_run,
    preset_names,
    resolved,
    to_toml,
)
from potstill.config.slots import SLOTS
from potstill.errors import InputError
from potstill.registry import METHODS

EVERY = [(slot, part) for slot in SLOTS for part in slot.registry]


@pytest.mark.parametrize(("slot", "part"), EVERY, ids=lambda value: getattr(value, "table", value))
def test_option_names_are_unique_with_every_part_and_every_one_is_a_flag_with_help(slot, part):
    known = list(options_of_run({slot.choice: part}))
    names = [option.name for option in known]
    assert len(names) == len(set(names))
    flags = {action.dest: action for action in make_parser(known)[1]["distill"]._actions}
    for name in names:
        assert f"--{name.replace('_', '-')}" in flags[name].option_strings
        assert flags[name].help.endswith("]")


def test_the_help_of_a_run_fits_on_two_screens():
    lines = make_parser(list(options_of_run({})))[1]["distill"].format_help().splitlines()
    assert len(lines) <= 111


def test_a_configuration_survives_its_toml():
    config = configuration(
        ipc=7,
        learn_labels=True,
        inner_optimizer="sgd",
        inner_milestones=(3, 9),
        augment=("flip", "rotate"),
        label_lr=0.5,
        data="parquet:/a 'b'/c",
        depth=2,
        width=64,
        preprocess="none",
        clip=0.0,
        param="basis",
        bases=3,
        method="fixed",
        burn_in=2,
    )
    text = to_toml(config, "a comment")
    assert text.startswith("# a comment\n")
    assert configuration(options_from_toml(text, "x")) == config
    complete = {name for table in tomllib.loads(text).values() for name in table}
    assert complete == {option.name for option in options_of_run(config.flat())}
    assert {"inner_milestones", "bases", "burn_in"} < complete
    assert not {"inner_eps_placement", "hallucinators", "patience"} & complete


def test_the_text_of_a_flag_reads_as_the_value_of_the_type():
    config = configuration(
        ipc="3",
        augment="flip, rotate",
        inner_optimizer="sgd",
        inner_milestones="5,6",
        inner_lr="1e-2",
        depth="auto",
        clip="unit",
    )
    assert (config.distilled.ipc, config.inner.augment) == (3, ("flip", "rotate"))
    assert (config.inner_optimizer.options.milestones, config.model.options.depth) == (
        (5, 6),
        "auto",
    )
    assert (config.inner.inner_lr, config.outer.clip) == (0.01, "unit")
    assert configuration(augment="none").inner.augment == ()


def test_a_later_layer_that_names_another_part_drops_the_options_of_the_one_it_replaces():
    preset = {
        "method": "rat-bptt",
        "unroll": 9,
        "window": 4,
        "param": "basis",
        "factor": 2,
        "bases": 3,
    }
    kept = layered(preset, {"method": "bptt", "param": "factorised"})
    assert kept == {"method": "bptt", "unroll": 9, "param": "factorised", "factor": 2}
    assert changed(configuration(preset), method="bptt").method.options.unroll == 9
    with pytest.raises(InputError, match="window has no effect with --method bptt"):
        configuration(preset, {"method": "bptt", "window": 3})


def test_a_method_may_want_other_defaults_than_the_house(monkeypatch):
    monkeypatch.setattr(
        METHODS["bptt"],
        "defaults",
        {"init": "real", "outer_optimizer": "sgd", "outer_momentum": 0.5},
    )
    config = configuration(method="bptt")
    assert (
        config.distilled.init,
        config.outer_optimizer.name,
        config.outer_optimizer.options.momentum,
    ) == ("real", "sgd", 0.5)
    assert configuration(method="bptt", init="gaussian").distilled.init == "gaussian"
    assert configuration(method="bptt", outer_optimizer="adam").outer_optimizer.name == "adam"
    assert configuration().distilled.init == "gaussian"


def test_a_resolved_configuration_holds_no_auto():
    config = configuration(method="growing")
    with pytest.raises(AssertionError, match="every auto must be resolved, left: "):
        resolved(config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ipc": 0}, r"ipc must be at least 1, got 0"),
        ({"ipc": 1.5}, r"ipc must be a whole number, got 1.5"),
        ({"ipc": True}, r"ipc must be a whole number, got True"),
        ({"inner_lr": 0}, r"inner_lr must be above 0, got 0"),
        ({"inner_lr": float("nan")}, r"inner_lr must be above 0, got nan"),
        ({"inner_lr": float("inf")}, r"inner_lr must be above 0, got inf"),
        ({"inner_lr": "fast"}, r"inner_lr must be a number, got 'fast'"),
        ({"validation": 0.6}, r"validation must be above 0 and at most 0.5, got 0.6"),
        (
            {"window": 80, "unroll": 60},
            r"window must lie in \[1, unroll=60\], got 80; lower --window or raise --unroll",
        ),
        (
            {"method": "rat-bpt"},
            r"unknown method 'rat-bpt' \(did you mean 'rat-bptt'\?\); known: backward, bptt, ",
        ),
        (
            {"norm": "instnce"},
            r"norm must be one of instance, batch, .*; got 'instnce' \(did you mean 'instance'\?\)",
        ),
        (
            {"augment": "flipp"},
            r"unknown augmentation 'flipp' \(did you mean 'flip'\?\); known: color, crop",
        ),
        ({"data": "foldr:x"}, r"unknown data source 'foldr' \(did you mean 'folder'\?\)"),
        ({"windw": 3}, r"unknown option 'windw' \(did you mean 'window'\?\)"),
        (
            {"bases": 3},
            r"bases has no effect with --param pixels; it belongs to basis: choose another "
            r"--param, or leave it out",
        ),
        (
            {"inner_momentum": 0.5},
            r"inner_momentum has no effect with --inner-optimizer adam; it belongs to sgd",
        ),
        ({"param": "pixls"}, r"unknown parameterisation 'pixls' \(did you mean 'pixels'\?\)"),
        (
            {"method": "nowhere.module:Name"},
            r"cannot import 'nowhere.module' of 'nowhere.module:Name'",
        ),
        ({"method": 3}, r"method must be the name of a part, got 3"),
        ({"learn_labels": "yes"}, r"learn_labels must be true or false, got 'yes'"),
        ({"lengths": ()}, r"lengths must hold at least one number of steps, got none"),
        ({"lengths": [0]}, r"lengths must be at least 1, got 0"),
        ({"lengths": 5}, r"lengths must be a list, got 5"),
        ({"device": "gpu"}, r"device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.configuration(options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[outr]\nsteps = 3",
            r"run.toml has an unknown section \[outr\] \(did you mean 'outer'\?\)",
        ),
        (
            "[outer]\nstep = 3",
            r"run.toml has an unknown key 'step' in \[outer\] \(did you mean 'steps'\?\)",
        ),
        ("steps = 3", r"run.toml has an unknown section \[steps\]"),
        ("[outer", r"run.toml is not valid TOML"),
    ],
)
def test_a_wrong_file_is_told_in_a_sentence(text, sentence):
    with pytest.raises(InputError, match=sentence):
        options_from_toml(text, "run.toml")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the configuration .*nothing.toml"):
        options_from_file(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    with pytest.raises(InputError, match=r"cannot read the configuration .*latin.toml"):
        options_from_file(tmp_path / "latin.toml")


# Table 1's columns with the windows of paper D.2 and the batches of D.1.
PAPER = {
    "cifar10-ipc1": (60, 200, 5000, 0.001, False),
    "cifar10-ipc10": (80, 250, 5000, 0.001, True),
    "cifar10-ipc50": (100, 300, 5000, 0.001, True),
    "cifar100-ipc1": (100, 300, 5000, 0.001, True),
    "cifar100-ipc10": (100, 300, 5000, 0.001, True),
    "cifar100-ipc50": (100, 300, 5000, 0.001, True),
    "cub200-ipc1": (60, 200, 3000, 0.001, True),
    "cub200-ipc10": (60, 200, 3000, 0.001, True),
    "tiny-imagenet-ipc1": (100, 300, 1000, 0.0003, True),
    "tiny-imagenet-ipc10": (100, 300, 1000, 0.0003, True),
    "imagenet-ipc1": (100, 300, 1500, 0.0003, True),
    "imagenet-ipc2": (100, 300, 1500, 0.0003, True),
}


def test_there_is_a_preset_for_every_column_of_table_1():
    assert {name for name, _ in preset_names()} >= set(PAPER)


@pytest.mark.parametrize("name", [name for name, _ in preset_names()])
def test_a_presets_first_line_is_the_command_that_runs_it(name):
    first = (
        (resources.files("potstill.config") / "presets" / f"{name}.toml")
        .read_text()
        .splitlines()[0]
    )
    assert first.startswith("# potstill distill ")
    command = first.removeprefix("# potstill ").split()
    parsed, unknown = make_parser(options_of_chosen(command[1:]))[0].parse_known_args(command)
    assert not unknown
    assert parsed.preset == name
    configuration(options_from_preset(name))


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_holds_the_papers_numbers(name):
    config = configuration(options_from_preset(name))
    outer, inner, windows = config.outer, config.inner, config.method.options
    assert (
        windows.window,
        windows.unroll,
        outer.real_batch,
        inner.inner_lr,
        config.distilled.learn_labels,
    ) == PAPER[name]
    assert outer.outer_lr == inner.inner_lr
    assert (config.inner_optimizer.name, inner.augment, config.method.name, outer.clip) == (
        "adam",
        ("flip", "rotate"),
        "rat-bptt",
        2.0,
    )
    assert config.distilled.ipc == int(name.rpartition("ipc")[2])
    assert config.preprocessing.name == ("normalize" if name.startswith("imagenet") else "zca")
    # A synthetic batch: 10 of a class on CIFAR-10, 1 elsewhere (2 on CIFAR-100 at IPC 50), 50
    # classes at 64 pixels.
    per_class = {
        "cifar10-ipc1": 1,
        "cifar10-ipc10": 10,
        "cifar10-ipc50": 10,
        "cifar100-ipc50": 2,
    }.get(name, 1)
    assert inner.batch_per_class == per_class
    assert inner.classes_per_batch == (50 if "imagenet" in name else "auto")


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(
        InputError, match=r"unknown preset 'cifar10-ipc01' \(did you mean 'cifar10-ipc"
    ):
        options_from_preset("cifar10-ipc01")


@pytest.mark.parametrize("name", ["seed", "split_seed"])
def test_seeds_may_be_of_any_size_and_other_whole_numbers_what_torch_counts(name):
    assert configuration({name: 10**40}).flat()[name] == 10**40
    with pytest.raises(InputError, match=r"unroll must be .* at most 9223372036854775807"):
        configuration({"unroll": 2**63})
    with pytest.raises(InputError, match="unroll must be at least 1, got 0"):
        configuration({"unroll": 0})
