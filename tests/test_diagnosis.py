"""The noise of a run: measured where the run was, with the draws that it would have made; what the
command says.
"""

import json

import pytest
import torch
from test_runs import QUICK

import potstill
from potstill.cli.parser import main
from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.diagnosis.over_a_run import DiagnosisRecord
from potstill.diagnosis.real_batch import best_size
from potstill.diagnosis.variance import Variance, noise_sources, real_variance
from potstill.distillation import run_folder
from potstill.distillation.setup import Setup
from potstill.errors import InputError
from potstill.evaluation.records import DIAGNOSIS, read_records
from potstill.methods.base import Examples
from potstill.progress import SILENT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that kept all its checkpoints; bfloat16 would round samples otherwise."""
    out = tmp_path_factory.mktemp("diagnosed") / "run"
    potstill.distill(**QUICK, keep_checkpoints=0, precision="float32", device="cpu", out=out)
    return out


def test_every_place_is_measured_at_its_own_state(run):
    found = potstill.diagnose(run, samples=6, size=2, unrolls=2, sources=2)
    assert [one.step for one in found] == [0, 4, 8, 12]
    folder, dataset = run_folder.RunFolder(run), read(DataConfig())
    setup = Setup.of(folder.config(), dataset, None, SILENT)
    _, state, _ = folder.checkpoints.states(
        folder.resolved_config(), dataset.fingerprint, torch.device("cpu")
    )
    stage = setup.stage(state)
    images, targets = state.leaves["0.images"], state.leaves["0.targets"]
    examples = Examples(images, targets, stage.labels, 0, True)
    at = (setup.make_method(stage, state.carried), examples, {}, state.method)
    assert found[2].real == tuple(real_variance(*at, step, samples=6, size=2) for step in (8, 9))
    assert found[2].sources == noise_sources(*at, 8, 2)
    # The run's own next step: its logged norm is that of the mean over its real batch.
    (dealt,) = potstill.diagnose(run, samples=60)[1].real
    assert dealt.norm == pytest.approx(folder.records()[4].grad_norm, rel=1e-4)


def test_a_nested_run_is_measured_over_all_its_blocks(tmp_path):
    potstill.distill(
        **{**QUICK, "steps": 4}, boost_blocks=2, keep_checkpoints=0, out=tmp_path / "run"
    )
    found = potstill.diagnose(tmp_path / "run", samples=4)
    assert [one.step for one in found] == [0, 4, 8]
    assert [one.real[0].entries for one in found] == [640, 640, 640]  # only the block that moves


def test_the_command_prints_a_table_and_writes_what_it_measured(run, capsys):
    assert main(["diagnose", str(run), "--samples", "5", "--signs", "3", "--sources", "2"]) == 0
    told = capsys.readouterr().out
    assert "rat-bptt; inner steps: 3 to 5 at random, the last 3 differentiated" in told
    kept = json.loads((run / DIAGNOSIS).read_text())["diagnoses"][-1]
    assert kept["settings"] == {"samples": 5, "size": 1, "signs": 3, "unrolls": 1, "sources": 2}
    assert [place["step"] for place in kept["places"]] == [0, 4, 8, 12]
    assert {"hardware", "versions"} < set(kept)
    first = kept["places"][0]
    assert f"{first['real'][0]['norm']:.3g}" in told
    noise = first["sources"]["all"]
    assert noise["share"] == pytest.approx(noise["entries"] * noise["per_entry"] / noise["power"])
    assert f"{100 * noise['share']:.0f} %" in told
    assert main(["diagnose", str(run), "--samples", "5"]) == 0
    # The same again replaces, another does not.
    assert main(["diagnose", str(run), "--samples", "5"]) == 0
    records, unreadable = read_records(run / DIAGNOSIS, DiagnosisRecord)
    assert ([record.settings.signs for record in records[-2:]], unreadable) == ([3, 0], 0)


def noise(real, others, size):
    """Sources of which a real image has the variance `real`, and all else `others`."""
    both = {"real": real / size, "all": others + real / size}
    return {name: Variance(value, 1.0, 1.0, 10, 4) for name, value in both.items()}


@pytest.mark.parametrize(
    ("real", "others", "fixed", "each"), [(50, 1, 2.0, 0.01), (900, 3, 0.7, 0.02), (1, 9, 1.0, 0.5)]
)
def test_the_best_real_batch_is_that_of_least_noise_in_a_given_time(real, others, fixed, each):
    def in_time(size):
        return (others + real / size) * (fixed + each * size)

    found = best_size(noise(real, others, 40), 40, fixed, each, 1000)
    assert in_time(found.best) == min(map(in_time, range(1, 1001)))
    assert found.gain == pytest.approx(in_time(40) / in_time(found.best))
    # If start and window make no noise, or images cost nothing: all there are.
    assert best_size(noise(real, 0, 40), 40, fixed, each, 1000).best == 1000
    assert best_size(noise(real, others, 40), 40, fixed, 0.0, 1000).best == 1000


def test_the_best_real_batch_is_measured_with_the_sources(tmp_path, capsys):
    out = tmp_path / "run"
    # So many that twice as many take longer on any machine.
    potstill.distill(**{**QUICK, "steps": 2, "real_batch": 640}, keep_checkpoints=0, out=out)
    found = potstill.diagnose(out, samples=0, sources=2)
    told = [one.real_batch for one in found if one.real_batch]
    assert told
    assert all(1 <= one.best <= 1295 and one.gain > 0.99 and one.present == 640 for one in told)
    records, _ = read_records(out / DIAGNOSIS, DiagnosisRecord)
    assert records[-1].places == tuple(found)
    assert potstill.diagnose(out, samples=5)[0].real_batch is None
    assert main(["diagnose", str(out), "--samples", "0", "--sources", "2"]) == 0
    assert "to the same noise the run's 640 take" in capsys.readouterr().out


def test_too_few_real_images_tell_no_best_batch(tmp_path):
    out = tmp_path / "run"
    potstill.distill(**{**QUICK, "steps": 1, "real_batch": 700}, out=out)  # of 1,295
    assert potstill.diagnose(out, samples=0, sources=2)[0].real_batch is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 1}, "samples must be 0 or at least 2, got 1"),
        ({"sources": 1}, "sources must be 0 or at least 2, got 1"),
        (
            {"samples": 0},
            "samples and sources are both 0, so that nothing is measured; give one of them",
        ),
        ({"size": 0}, "size must be at least 1, got 0"),
        (
            {"samples": 100, "size": 20},
            r"samples x size must be at most the 1,295 train images, got 100 x 20",
        ),
        (
            {"images": torch.rand(60, 1, 8, 8), "labels": torch.arange(60) % 10},
            "was started with other data",
        ),
    ],
)
def test_what_cannot_be_measured_is_told(run, arguments, message):
    with pytest.raises(InputError, match=message):
        potstill.diagnose(run, **arguments)


def test_a_folder_without_a_run_is_told(tmp_path, capsys):
    assert main(["diagnose", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run of potstill" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path), "--samples", "-3"]) == 2
    assert "must be a whole number of at least 0, got '-3'" in capsys.readouterr().err
