"""Hardness of real examples: scores against a slow twin, weights against their formulas, draws
against their probabilities.
"""

import itertools
import json
import re

import pytest
import torch
import torch.nn.functional as F
from test_evaluation import blobs
from test_runs import QUICK, bytes_of, interrupted_run
from torch import nn

import potstill
from potstill import files
from potstill.cli.parser import main
from potstill.data.splits import TensorSplit
from potstill.distillation import run_folder
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError
from potstill.evaluation.hardness import adaptive_scores, forgetting, hardness_weights
from potstill.evaluation.training import set_batches, split_batches, steps_of, train_network
from potstill.models import fresh
from potstill.seeds import derive

CPU = torch.device("cpu")
RECIPE = Recipe("mlp", lr=0.02, steps=3)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_weights_are_their_formulas():
    scores = torch.arange(9)
    # Appendix E.2 with 8 networks and threshold 1, as its prose wants it.
    assert hardness_weights(scores, 1, 8).tolist() == [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert hardness_weights(scores, 4, 8).tolist() == [4, 5, 6, 7, 8, 7, 6, 5, 4]
    assert hardness_weights(torch.tensor([0, 3]), 0.5, 3).tolist() == [0.5, 0.5]


def test_forgetting_events_are_those_of_a_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.evaluation.training.FULL_BATCH", 40)
    real = blobs(300)
    split = real.train
    options = {"epochs": 6, "starts": 2, "seed": 3, "device": CPU, "content": "blobs"}
    found = forgetting(split, RECIPE, linear, 3, folder=tmp_path, **options)
    events, learned = torch.zeros(len(split)), torch.zeros(len(split))
    images, labels = split.take(torch.arange(len(split)))
    for start in range(2):
        own = derive(3, "forgetting", start)
        net, batch = fresh(linear, own, CPU), split_batches(split, RECIPE, 3, own)
        optimizer, history = torch.optim.Adam(net.parameters(), lr=0.02), []
        for step in range(6 * -(-len(split) // 40)):
            inputs, targets = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
            if (step + 1) % -(-len(split) // 40) == 0:
                history.append(net(images).argmax(1) == labels)
        events += (
            sum((before & ~after).float() for before, after in itertools.pairwise(history)) / 2
        )
        learned += torch.stack(history).any(0).float() / 2
    assert torch.equal(found.events.float(), events)
    assert torch.equal(found.learned.float(), learned)
    assert events.max() > 0  # some are forgotten, or there is nothing to see
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2

    def never(*args, **how):
        raise AssertionError

    # What is known is not done again.
    monkeypatch.setattr("potstill.evaluation.hardness.train_network", never)
    assert torch.equal(
        forgetting(split, RECIPE, linear, 3, folder=tmp_path, **options).events, found.events
    )
    with pytest.raises(AssertionError):
        forgetting(
            split, RECIPE, linear, 3, folder=tmp_path, **{**options, "content": "other data"}
        )


def test_adaptive_scores_count_the_networks_that_are_wrong():
    real = blobs(90)
    images, labels = real.train.take(torch.arange(9))
    targets = F.one_hot(labels, 3).float()

    def make(own: int):
        return set_batches(images, targets, labels, RECIPE, own)

    def trained(own: int):
        (predict,) = train_network(fresh(linear, own, CPU), make(own), RECIPE, (3,), own)
        return predict

    scores = adaptive_scores(trained, real.train, networks=4, seed=5)
    wrong = torch.zeros(len(real.train))
    inputs, right = real.train.take(torch.arange(len(real.train)))
    for network in range(4):
        own = derive(5, "network", network)
        net, batch = fresh(linear, own, CPU), make(own)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for step in range(3):
            some, wanted = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(net(some), wanted).backward()
            optimizer.step()
        wrong += (net(inputs).argmax(1) != right).float()
    assert torch.equal(scores.float(), wrong)
    assert 0 < scores.float().mean() < 4


HARD = {
    **QUICK,
    "real_sampler": "hardness",
    "hardness_nets": 2,
    "hardness_every": 3,
    "hardness_from": 2,
}


def test_a_run_scores_on_schedule_says_what_it_costs_and_resumes_to_the_byte(tmp_path):
    whole = potstill.distill(**HARD, out=tmp_path / "whole")
    records = run_folder.RunFolder(tmp_path / "whole").records()
    # Before steps 2, 5, 8, 11.
    assert [record.step for record in records if record.hardness_seconds is not None] == [
        3,
        6,
        9,
        12,
    ]
    plain = potstill.distill(**QUICK)
    assert not torch.equal(whole.images, plain.images)
    interrupted_run(tmp_path / "cut", 7, **HARD)
    (newest,) = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1:]
    scores = files.load_tensors(newest, "checkpoint")[0]["sampler.scores"]
    assert (scores.dtype, len(scores)) == (torch.uint8, whole.meta["data"]["train"])
    potstill.resume(tmp_path / "cut")
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_the_report_says_how_images_are_weighed_and_what_it_cost(tmp_path):
    potstill.distill(**HARD, out=tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text()
    found = re.search(
        r"most of middling hardness, least weight 1; scored by 2 networks every 3 steps from step "
        r"2 on, which took ([\d.]+) %",
        page,
    )
    records = run_folder.RunFolder(tmp_path / "run").records()
    spent, steps = (
        sum(record.value(name) or 0 for record in records)
        for name in ("hardness_seconds", "seconds")
    )
    assert float(found[1]) == pytest.approx(100 * spent / (spent + steps), abs=0.06)


def test_before_its_time_it_changes_nothing():
    late = potstill.distill(**{**HARD, "hardness_from": 100})
    assert torch.equal(late.images, potstill.distill(**QUICK).images)


def test_the_samplers_options_are_those_of_the_command_line(tmp_path, capsys):
    words = [
        "distill",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--model",
        "mlp",
        "--steps",
        "2",
        "--unroll",
        "2",
    ]
    words += [
        "--window",
        "1",
        "--lengths",
        "3",
        "--real-sampler",
        "hardness",
        "--hardness-threshold",
        "4",
    ]
    assert main([*words, "--hardness-nets", "3", "--hardness-every", "1"]) == 0
    assert (
        json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])[
            "hardness_seconds"
        ]
        > 0
    )
    capsys.readouterr()
    hardness = ["--real-sampler", "hardness"]
    for flags, sentence in (
        ([*hardness, "--hardness-threshold", "0"], "hardness_threshold must be above 0, got 0"),
        ([*hardness, "--hardness-nets", "0"], "hardness_nets must be at least 1"),
        (
            ["--real-sampler", "hardnes"],
            "unknown real sampler 'hardnes' (did you mean 'hardness'?); known: balanced, hardness, "
            "k-means, uniform",
        ),
        (
            ["--hardness-nets", "4"],
            "--hardness-nets has no effect with --real-sampler uniform; it belongs to "
            "--real-sampler hardness",
        ),
    ):
        assert main(["distill", *flags]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 258, 512, 513, 514])
def test_epochs_are_as_many_batches_as_it_takes_to_see_every_image(count):
    split = TensorSplit(torch.arange(count).float()[:, None], torch.zeros(count, dtype=torch.int64))
    batch = split_batches(split, Recipe("mlp"), 1, 0)
    for _ in range(2):  # epochs
        seen = [batch(step)[0][:, 0] for step in range(steps_of(split, 1))]
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(count).float())


def test_a_folder_of_results_needs_to_know_the_data(tmp_path):
    real = blobs(30)
    with pytest.raises(InputError, match="content must tell the data"):
        forgetting(
            real.train, RECIPE, linear, 3, epochs=1, starts=1, seed=0, device=CPU, folder=tmp_path
        )
