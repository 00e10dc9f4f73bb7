"""`--method auto`: what was measured at the nearest setting decides, and is told."""

import numpy as np
import pytest

import potstill
from potstill.cli.parser import main
from potstill.config import choosing
from potstill.config.choosing import Setting, best, options_for, settings, with_method
from potstill.config.config import configuration
from potstill.errors import InputError
from potstill.progress import Listener
from potstill.registry import METHODS

SMALL = {"rat-bptt": (0.8, 0.02), "dm": (0.9, 0.01), "kip": (0.5, None)}
LARGE = {"rat-bptt": (0.8, 0.02), "dm": (0.81, 0.02), "kip": (0.5, None)}
KNOWN = [
    Setting("digits", (1, 8, 8), 1, 20.0, SMALL),
    Setting("photos", (3, 32, 32), 1, 60.0, LARGE),
    Setting("photos", (3, 32, 32), 10, 60.0, {**LARGE, "rat-bptt": (0.9, None)}),
]


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(choosing, "settings", lambda: KNOWN)


def chosen(shape, **options) -> tuple[str, str]:
    given, why = with_method(shape, {**options, "method": "auto"})
    return given["method"], why


def test_the_best_at_the_nearest_setting_is_taken_and_the_default_where_it_is_as_good(known):
    assert chosen((1, 12, 12))[0] == "dm"
    method, why = chosen((3, 40, 40), time_budget="2m")
    assert method == "rat-bptt"
    assert "80.0 %, as good as dm, 81.0 %, give or take 2.8 %" in why
    assert "of 3 methods on photos, 1 of each class in 1 min 0 s" in why
    method, why = chosen((3, 40, 40), ipc=20)
    assert method == "rat-bptt"
    assert "90.0 %, dm 81.0 %" in why
    assert "90.0 %, rat-bptt 80.0 %" in chosen((1, 8, 8), ipc=1)[1]


def test_rows_of_a_table_have_the_default(known):
    assert chosen((13,)) == (
        "rat-bptt",
        "method auto: rat-bptt (methods were compared on images, these data are rows)",
    )


@pytest.mark.parametrize("seconds", [None, 60.0, 600.0, 3600.0])
def test_the_default_s_preset_goes_by_the_time(seconds):
    options = options_for("rat-bptt", seconds)
    assert configuration(options).method.name == "rat-bptt"
    assert options["inner_width" if seconds and seconds > 180 else "width"]
    assert "time_budget" not in options


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_s_options_make_a_run(method):
    assert configuration(options_for(method)).method.name == method


def test_what_the_user_gives_wins_and_what_has_no_effect_is_refused(known, monkeypatch):
    asked = {"method": "auto", "width": 8, "real_per_class": 3}
    given, _ = with_method((1, 8, 8), asked)
    assert (given["width"], given["real_per_class"]) == (8, 3)
    with pytest.raises(InputError, match=r"window has no effect with --method dm.*auto that chose"):
        with_method((1, 8, 8), {"method": "auto", "window": 3})
    for wrong, message in (
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"ipc": "x"}, "ipc must be a whole number"),
        ({"time_budget": 300}, "time_budget must be"),
        ({"windwo": 3}, "unknown option 'windwo'"),
    ):
        with pytest.raises(InputError, match=message):
            with_method((1, 8, 8), {"method": "auto", **wrong})
    coreset = Setting(
        "digits", (1, 8, 8), 1, 20.0, {"rat-bptt": (0.5, None), "herding": (0.9, None)}
    )
    monkeypatch.setattr(choosing, "settings", lambda: [coreset])
    asked = {"method": "auto", "time_budget": "20s", "validate_every": 5, "ipc": 3}
    given, _ = with_method((1, 8, 8), asked)  # which takes one step, whatever the time
    assert (given["method"], given["ipc"], "time_budget" in given) == ("herding", 3, False)
    monkeypatch.setattr(choosing, "settings", lambda: KNOWN)
    other = {"method": "auto", "inner_optimizer": "sgd", "inner_momentum": 0.5}
    assert with_method((1, 8, 8), other)[0]["inner_momentum"] == 0.5
    preset = {"unroll": 7, "window": 3, "ipc": 1}  # of the default, which was not chosen
    given, _ = with_method((1, 8, 8), preset, {"method": "auto"})
    assert "unroll" not in given
    assert choosing.asked({"method": "dm"}, {"method": "auto"})
    assert not choosing.asked({"method": "auto"}, {"method": "dm"})
    assert not choosing.asked({}, {})


def test_it_works_from_python_and_from_the_command_line(known, tmp_path, capsys):
    said: list[str] = []
    images = np.random.default_rng(0).normal(size=(60, 1, 8, 8))
    made = potstill.distill(
        images, np.arange(60) % 3, method="auto", steps=2, width=4, real_per_class=5,
        lengths=(5,), out=tmp_path / "one", listener=Listener(say=said.append),
    )  # fmt: skip
    assert said[0].startswith("method auto: dm (of 3 methods on digits")
    assert len(made) == 3
    assert 'method = "dm"' in (tmp_path / "one/config.toml").read_text()
    words = [
        "distill", "--method", "auto", "--data", "digits", "--steps", "2", "--width", "4",
        "--lengths", "5", "--out", str(tmp_path / "two"),
    ]  # fmt: skip
    assert main(words) == 0
    told = capsys.readouterr()
    assert "method auto: dm (" in told.err + told.out
    assert 'method = "dm"' in (tmp_path / "two/config.toml").read_text()
    assert main([*words, "--window", "3", "--overwrite"]) == 2
    assert "window has no effect with --method dm" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "two")]) == 2  # it is there, and nothing is read
    assert "two" in capsys.readouterr().err


def test_the_measured_table_is_of_methods_that_there_are():
    for setting in settings():
        assert {*setting.accuracy} <= set(METHODS)
        assert choosing.method_slot.default in setting.accuracy
        assert all(0 < mean < 1 for mean, _ in setting.accuracy.values())
        method, words = best(setting)
        assert method in setting.accuracy
        assert words
    assert len(settings()) > 1
