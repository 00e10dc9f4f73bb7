"""One set of options for Python, TOML and the command line."""

import tomllib
from importlib import resources

import pytest

from potstill.cli import make_parser
from potstill.config import (
    Config,
    options_from_file,
    options_from_preset,
    options_from_toml,
    options_of_config,
    preset_names,
    to_toml,
)
from potstill.registry import InputError


def test_option_names_are_unique_and_every_one_is_a_flag_with_help():
    names = [item.name for _, item, _ in options_of_config()]
    assert len(names) == len(set(names))
    flags = {action.dest: action for action in make_parser()[1]["distill"]._actions}
    for name in names:
        assert f"--{name.replace('_', '-')}" in flags[name].option_strings
        assert "default: " in flags[name].help


def test_a_configuration_survives_its_toml():
    config = Config.from_options(
        ipc=7, learn_labels=True, lr_milestones=(3, 9), augment=("flip", "rotate"), inner_optimizer="sgd", label_lr=0.5,
        data="parquet:/a 'b'/c", depth=2, real_augment=(), width=64, preprocess="none", clip=0.0,
    )  # fmt: skip
    text = to_toml(config, "a comment")
    assert text.startswith("# a comment\n")
    assert Config.from_options(**options_from_toml(text, "x")) == config
    complete = {name for table in tomllib.loads(text).values() for name in table}
    assert complete == {item.name for _, item, _ in options_of_config()}


def test_the_text_of_a_flag_reads_as_the_value_of_the_type():
    config = Config.from_options(
        ipc="3", augment="flip, rotate", lr_milestones="5,6", inner_lr="1e-2", depth="auto", real_augment="none"
    )
    assert (config.distilled.ipc, config.inner.augment, config.inner.lr_milestones) == (3, ("flip", "rotate"), (5, 6))
    assert (config.inner.inner_lr, config.inner.depth, config.outer.real_augment) == (0.01, "auto", ())


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
        ({"window": 80, "unroll": 60}, r"window must lie in \[1, unroll=60\], got 80; lower --window or raise --unroll"),
        ({"method": "rat-bpt"}, r"unknown method 'rat-bpt' \(did you mean 'rat-bptt'\?\); known: backward, bptt, early, "),
        ({"norm": "instnce"}, r"norm must be one of instance, batch, .*; got 'instnce' \(did you mean 'instance'\?\)"),
        ({"augment": "flipp"}, r"unknown augmentation 'flipp' \(did you mean 'flip'\?\); known: color, crop"),
        ({"data": "foldr:x"}, r"unknown data source 'foldr' \(did you mean 'folder'\?\)"),
        ({"windw": 3}, r"unknown option 'windw' \(did you mean 'window'\?\)"),
        ({"learn_labels": "yes"}, r"learn_labels must be true or false, got 'yes'"),
        ({"lengths": ()}, r"lengths must hold at least one number of steps, got none"),
        ({"lengths": [0]}, r"lengths must be at least 1, got 0"),
        ({"lengths": 5}, r"lengths must be a list, got 5"),
        ({"device": "gpu"}, r"device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Config.from_options(**options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[outr]\nsteps = 3", r"run.toml has an unknown section \[outr\] \(did you mean 'outer'\?\)"),
        ("[outer]\nstep = 3", r"run.toml has an unknown key 'step' in \[outer\] \(did you mean 'steps'\?\)"),
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
    "cifar10-ipc1": (60, 200, 5000, 0.001, False), "cifar10-ipc10": (80, 250, 5000, 0.001, True),
    "cifar10-ipc50": (100, 300, 5000, 0.001, True), "cifar100-ipc1": (100, 300, 5000, 0.001, True),
    "cifar100-ipc10": (100, 300, 5000, 0.001, True), "cifar100-ipc50": (100, 300, 5000, 0.001, True),
    "cub200-ipc1": (60, 200, 3000, 0.001, True), "cub200-ipc10": (60, 200, 3000, 0.001, True),
    "tiny-imagenet-ipc1": (100, 300, 1000, 0.0003, True), "tiny-imagenet-ipc10": (100, 300, 1000, 0.0003, True),
    "imagenet-ipc1": (100, 300, 1500, 0.0003, True), "imagenet-ipc2": (100, 300, 1500, 0.0003, True),
}  # fmt: skip


def test_there_is_a_preset_for_every_column_of_table_1():
    assert {name for name, _ in preset_names()} >= set(PAPER)


@pytest.mark.parametrize("name", [name for name, _ in preset_names()])
def test_a_presets_first_line_is_the_command_that_runs_it(name):
    first = (resources.files("potstill") / "presets" / f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# potstill distill ")
    command = first.removeprefix("# potstill ").split()
    parsed, unknown = make_parser()[0].parse_known_args(command)
    assert not unknown
    assert parsed.preset == name
    Config.from_options(**options_from_preset(name))


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_holds_the_papers_numbers(name):
    config = Config.from_options(**options_from_preset(name))
    outer, inner = config.outer, config.inner
    assert (outer.window, outer.unroll, outer.real_batch, inner.inner_lr, config.distilled.learn_labels) == PAPER[name]
    assert outer.outer_lr == inner.inner_lr
    assert (inner.inner_optimizer, inner.augment, outer.method, outer.clip) == ("adam", ("flip", "rotate"), "rat-bptt", 2.0)
    assert config.distilled.ipc == int(name.rpartition("ipc")[2])
    assert config.data.preprocess == ("normalize" if name.startswith("imagenet") else "zca")
    # A synthetic batch: 10 of a class on CIFAR-10, 1 elsewhere (2 on CIFAR-100 at IPC 50), 50 classes at 64 pixels.
    per_class = {"cifar10-ipc1": 1, "cifar10-ipc10": 10, "cifar10-ipc50": 10, "cifar100-ipc50": 2}.get(name, 1)
    assert inner.batch_per_class == per_class
    assert inner.classes_per_batch == (50 if "imagenet" in name else "auto")


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(InputError, match=r"unknown preset 'cifar10-ipc01' \(did you mean 'cifar10-ipc"):
        options_from_preset("cifar10-ipc01")
