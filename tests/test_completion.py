"""What shells complete."""

import shutil
import subprocess

import pytest

from potstill.cli.completion import script
from potstill.cli.flags import SHELLS
from potstill.cli.parser import main

ASK = """
source {script}
COMP_WORDS=(potstill {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_potstill
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "completion.bash"
    path.write_text(script("bash"))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dist", "distill"),
        ("distill --early-w", "--early-weight"),  # an option of one sampler of windows alone
        ("distill --method mt", "mtt"),
        ("distill --preset digits", "digits-ipc1"),
        ("distill --param bas", "basis"),
        ("distill --tape ''", "states sqrt host bfloat16"),
        ("distill --model res", "resnet18"),
        ("evaluate --protocol mtt", "mtt mtt-digits"),
        ("study trans", "transfer"),
        ("completion z", "zsh"),
    ],
)
def test_bash_offers_commands_flags_and_names(bash, words, offered):
    asked = ASK.format(script=bash, words=words)
    told = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert offered in told.stdout.strip()


@pytest.mark.parametrize("shell", SHELLS)
def test_there_is_a_script_for_every_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "distill" in capsys.readouterr().out


def test_another_shell_gets_a_sentence(capsys):
    assert main(["completion", "elvish"]) == 2
    assert "elvish" in capsys.readouterr().err
