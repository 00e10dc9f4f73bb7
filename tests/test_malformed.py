"""Whatever is wrong with what potstill is given: one sentence, exit code 2, soon and in little
memory.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS, BYTES, LONGEST = 2.0, 200_000_000, 2_000


def wrong_with(outcome: dict[str, Any]) -> str:
    """What is wrong with how an input was refused; "" if nothing is."""
    told = outcome["told"].strip().splitlines()
    errors = [line for line in told if line.startswith("potstill: error: ")]
    if outcome["failed"] or outcome["code"] != 2:
        return f"exit code {outcome['code']}, {outcome['failed'] or told}"
    if len(errors) != 1 or told[-1:] != errors:
        return f"not one sentence at the end: {told}"
    if not errors[0].isprintable() or len(errors[0]) > LONGEST:
        return f"no sentence to read: {errors[0]!r}"
    return f"{outcome['peak']:,} bytes of memory" if outcome["peak"] > BYTES else ""


def test_hundreds_of_malformed_inputs_are_one_sentence_each(tmp_path):
    """One process is given them all: what an input leaves behind would show in later ones."""
    script = Path(__file__).parent / "malformed.py"
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = {one["what"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert len(outcomes) > 400
    wrong = {what: wrong_with(one) for what, one in outcomes.items()}
    assert {what: why for what, why in wrong.items() if why} == {}
    slow = {what: one["seconds"] for what, one in outcomes.items() if one["seconds"] > SECONDS}
    assert len(slow) <= 2, f"one may be late on a machine that others load: {slow}"
    # Modules that some inputs need are loaded then, and stay.
    assert list(outcomes.values())[-1]["total"] < 2 * BYTES
