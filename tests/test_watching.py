"""The page that follows a run."""

import subprocess
import sys
import time

import pytest
from test_runs import QUICK, flags

from potstill.cli.parser import main
from potstill.distillation.locks import is_held
from potstill.distillation.run_folder import METRICS
from potstill.reports.report import watch


@pytest.fixture
def running(tmp_path):
    """A run that another process works on, and that process."""
    run = tmp_path / "run"
    long = {**QUICK, "steps": 100_000, "validate_every": 100_000, "data": "digits"}
    words = [sys.executable, "-m", "potstill", "distill", "--out", str(run), "--quiet"]
    process = subprocess.Popen([*words, *flags(**long)], stderr=subprocess.DEVNULL)
    ended = time.monotonic() + 60
    while not ((run / METRICS).exists() and (run / METRICS).stat().st_size):
        assert time.monotonic() < ended
        assert process.poll() is None
        time.sleep(0.1)
    yield run, process
    process.kill()
    process.wait()


def test_the_page_tells_a_running_run_from_a_killed_one(running, tmp_path, capsys):
    run, process = running
    out, pages = tmp_path / "page.html", []

    def wait(seconds):
        assert seconds == 3
        pages.append(out.read_text())
        if len(pages) == 2:
            process.kill()
            process.wait()

    assert is_held(run)
    watch([run], out, 3, wait)
    assert [page.count('http-equiv="refresh" content="3"') for page in pages] == [1, 1]
    assert all("Running: " in page for page in pages)
    last = out.read_text()
    assert 'http-equiv="refresh"' not in last
    assert "Stopped: " in last
    assert "potstill distill --resume" in last
    assert not is_held(run)
    # Watching it now writes the last page at once.
    assert main(["watch", str(run), "--out", str(out), "--every", "1"]) == 0
    assert "no process works on it any more" in capsys.readouterr().out


def test_nothing_to_watch_gets_a_sentence(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "holds no run of potstill" in capsys.readouterr().err
    (tmp_path / "page.html").write_text("mine")
    assert main(["watch", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert (tmp_path / "page.html").read_text() == "mine"
