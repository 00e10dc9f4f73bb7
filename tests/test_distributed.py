"""Ranks: the bytes of one process, stops, resumes, and what goes wrong between them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_cli import photos
from test_runs import bytes_of, flags, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.distillation import checkpoints, run_folder
from potstill.distillation.option_checks import check_dealt
from potstill.distributed.link import VARIABLES
from potstill.distributed.ranks import ALONE, Ranks
from potstill.errors import InputError
from potstill.registry import METHODS

# Three trajectories and networks on two ranks: one has more to do than the other.
SAME = {
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
    "compile": "off",
    "trajectories": 3,
    "validation_nets": 3,
}
LONG = {**SAME, "steps": 60, "checkpoint_every": 20, "validate_every": 30}
ENDLESS = {**SAME, "steps": 5000, "checkpoint_every": 5, "validate_every": 5000}
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "potstill",
)


def torchrun(*words: object) -> subprocess.Popen[str]:
    """Start a command on two ranks."""
    return subprocess.Popen(
        [*TORCHRUN, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """Wait for a command that must succeed; what it printed."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def by_hand(*commands: list[object]) -> tuple[list[int], str]:
    """Run one command on each rank, without torchrun; their exit codes, and what all said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank, words in enumerate(commands):
        values = (rank, len(commands), rank, "localhost", port)
        known = dict(os.environ) | dict(zip(VARIABLES, map(str, values), strict=True))
        line = [sys.executable, "-m", "potstill", *map(str, words)]
        started.append(
            subprocess.Popen(
                line, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], "".join(said)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Find the processes of the ranks that torchrun started, in their order."""
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, listed.stdout.split()))


def until_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has done some steps."""
    metrics = run / run_folder.METRICS
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A finished run of LONG in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(["distill", "--out", str(out), *flags(**LONG), "--quiet"]) == 0
    return out


def test_two_ranks_give_the_bytes_of_one_process(alone, tmp_path):
    out = tmp_path / "run"
    printed = finished(torchrun("distill", "--out", out, *flags(**LONG)))
    assert printed.count("distilled set:") == 1
    assert bytes_of(out) == bytes_of(alone)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    for here, there in zip(
        run_folder.RunFolder(out).records(), run_folder.RunFolder(alone).records(), strict=True
    ):
        assert (here.step, here.loss, here.info, here.validation) == (
            there.step,
            there.loss,
            there.info,
            there.validation,
        )


def test_two_ranks_evaluate_as_one_process(alone, tmp_path):
    words = (
        "--nets",
        3,
        "--baseline",
        "random",
        "--threads",
        1,
        "--compile",
        "off",
        "--device",
        "cpu",
    )
    found = []
    for folder, ranks in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "distilled.safetensors"
        file.write_bytes(bytes_of(alone))
        if ranks == 1:
            assert main(["evaluate", *map(str, (file, *words))]) == 0
        else:
            assert finished(torchrun("evaluate", file, *words)).count("written:") == 1
        found.append(json.loads((tmp_path / folder / "evaluation.json").read_text()))
    assert found[0] == found[1]


def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path):
    interrupted_run(tmp_path / "run", after=25, **LONG)
    finished(torchrun("distill", "--resume", tmp_path / "run"))
    assert bytes_of(tmp_path / "run") == bytes_of(alone)


def test_a_signal_stops_all_ranks_after_one_step_and_the_run_goes_on(alone, tmp_path):
    out = tmp_path / "run"
    process = torchrun("distill", "--out", out, *flags(**LONG))
    until_steps(out, 3, process)
    # To one rank alone: the other stops because they agree.
    os.kill(children(process)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.count("potstill: ") == 1
    assert f"; go on with `potstill distill --resume {out}`" in errors
    steps = [record.step for record in run_folder.RunFolder(out).records()]
    assert f"potstill: interrupted after outer step {steps[-1]};" in errors
    assert f"step-{steps[-1]:08d}-interrupted" in {
        path.stem for path in (out / checkpoints.CHECKPOINTS).iterdir()
    }
    potstill.resume(out)
    assert bytes_of(out) == bytes_of(alone)


def test_a_dead_rank_ends_the_others_with_one_sentence(tmp_path):
    out = tmp_path / "run"
    process = torchrun("distill", "--out", out, *flags(**ENDLESS))
    until_steps(out, 8, process)
    began = time.monotonic()
    os.kill(children(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    told = [line for line in errors.splitlines() if line.startswith("potstill: ")]
    assert len(told) == 1
    assert told[0].startswith("potstill: error: rank 1 of 2 is gone")
    assert told[0].endswith(f"; go on with `potstill distill --resume {out}`")
    said: list[str] = []
    run = run_folder.RunFolder(out)
    config = run.resolved_config()
    fingerprint = run.preparation().described.data.whole_identity
    known = config, fingerprint, torch.device("cpu"), said.append
    assert run.checkpoints.newest(*known).step % 5 == 0
    assert not said


def test_ranks_with_different_data_are_one_sentence(tmp_path):
    options = {**SAME, "ipc": 1, "classes_per_batch": 2, "cache_dir": tmp_path / "cache"}
    words = ["distill", "--out", tmp_path / "run", *flags(**options)]
    data = [
        f"folder:{photos(tmp_path / name, [(8, 8)], count=count)}"
        for name, count in (("a", 8), ("b", 9))
    ]
    codes, said = by_hand(*([*words, "--data", one] for one in data))
    assert codes == [2, 2]
    assert (
        said.count("potstill: error: ")
        == said.count("the hash of the data must be the same on all ranks")
        == 1
    )
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_an_option_that_differs_is_named():
    told = [
        {"seed": "0", "window": "9"},
        {"seed": "0", "window": "9"},
        {"seed": "0", "window": "8"},
    ]
    ranks = Ranks(1, 3, link=SimpleNamespace(tell=lambda values: told))
    with pytest.raises(
        InputError,
        match="window must be the same on all ranks, rank 0 has 9 and rank 2 has 8; start every "
        "rank",
    ):
        ranks.require_same(told[1])
    told.pop()
    ranks.require_same(told[1])


def test_what_one_rank_meets_ends_all_and_is_said_once(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    words = ["distill", "--out", tmp_path, *flags(**SAME)]
    codes, said = by_hand(words, words)
    assert codes == [2, 2]
    assert (
        said.count("potstill: ")
        == said.count("exists and is no run of potstill; choose another folder with --out")
        == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "got RANK=0, WORLD_SIZE=2 without LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        ),
        (
            {"MASTER_ADDR": "localhost"},
            "got MASTER_ADDR=localhost without RANK, WORLD_SIZE, LOCAL_RANK, MASTER_PORT",
        ),
        (
            dict(zip(VARIABLES, "22001", strict=True)),
            "RANK must be a whole number in [0, 1], got '2'",
        ),
        (
            dict(zip(VARIABLES, "0x001", strict=True)),
            "WORLD_SIZE must be a whole number in [1, 65536], got 'x'",
        ),
    ],
)
def test_half_set_variables_are_one_sentence(tmp_path, monkeypatch, capsys, known, message):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert main(["distill", "--out", str(tmp_path / "run"), *flags(**SAME)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("potstill: error: the variable")
    assert errors.count("\n") == 1
    assert message in errors
    assert ", or unset " in errors


def test_a_rank_without_a_trajectory_is_refused():
    config = configuration({"trajectories": 2})
    method, said = METHODS[config.method.name], list[str]()
    check_dealt(config, method, Ranks(0, 2), said.append)
    check_dealt(configuration({}), method, ALONE, said.append)
    with pytest.raises(
        InputError,
        match=r"trajectories must be at least the number of ranks, 3, .* got 2; give "
        r"--trajectories 3",
    ):
        check_dealt(config, method, Ranks(0, 3), said.append)
    assert not said


def test_a_command_that_is_not_dealt_out_refuses_several_ranks(monkeypatch, capsys):
    for name, value in zip(VARIABLES, ("0", "2", "0", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert main(["study", "windows"]) == 2
    assert (
        "`potstill study` is not dealt out to ranks and must run in one process, got 2;"
        in capsys.readouterr().err
    )


def test_parts_are_dealt_out_by_index():
    shares = [list(Ranks(rank, 3).share(7)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
