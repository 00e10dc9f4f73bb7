"""Whatever is wrong with what potstill is given: one sentence, exit code 2, soon and in little
memory.
"""

import json
import subprocess
import sys
from pathlib import Path

from malformed import BYTES

SECONDS = 2.0


def test_hundreds_of_malformed_inputs_are_one_sentence_each(tmp_path):
    """One process is given them all: what an input leaves behind would show in later ones."""
    script = Path(__file__).parent / "malformed.py"
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = {one["what"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert len(outcomes) > 400
    assert {what: one["wrong"] for what, one in outcomes.items() if one["wrong"]} == {}
    slow = {what: one["seconds"] for what, one in outcomes.items() if one["seconds"] > SECONDS}
    assert len(slow) <= 2, f"one may be late on a machine that others load: {slow}"
    # Modules that some inputs need are loaded then, and stay.
    assert list(outcomes.values())[-1]["total"] < 2 * BYTES
