"""Every command that the README and the documentation show is one that potstill takes."""

import re
import shlex
from pathlib import Path

import pytest

from potstill.cli import commands
from potstill.cli.flags import make_parser
from potstill.cli.parser import options_of_chosen
from potstill.config.choosing import asked
from potstill.registry import STUDIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(r"^(?:    )?(?:potstill|torchrun .* -m potstill) (.*)$", re.MULTILINE)
OWN = re.compile(r"\b(?!sklearn|folder|archive|webdataset|idx|parquet|npz|csv|hf|zoo|timm)\w+:\w")
"""Parts of a user's own, which are not there."""
COMMANDS = tuple(make_parser()[1])


def shown():
    """Yield (page, words) of each command."""
    for page in PAGES:
        for line in SHOWN.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            if words[0] in COMMANDS:
                yield page.name, words


EVERY = [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in shown()]


def test_there_are_many():
    assert len(EVERY) > 60


@pytest.mark.parametrize("words", EVERY)
def test_a_command_is_taken(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a bare path of data is known by what is there
    (tmp_path / "photos").mkdir()
    for name in ("photos.zip", "weights.npy"):
        (tmp_path / name).touch()
    words = [word for word in words if word != "..."]
    if OWN.search(" ".join(words)):
        pytest.skip("names a part of a user's own")
    known = ()
    if words[0] == "distill":
        known = options_of_chosen(words) if "--config" not in words else ()
    parser, _ = make_parser(known)
    parsed, unknown = parser.parse_known_args(words)
    if "--config" not in words:
        assert not unknown
    if words[0] == "distill" and not (parsed.resume or parsed.config):
        given = [*commands.layers(parsed.preset, None), commands.given_options(parsed)]
        if not asked(*given):
            commands.new_config(parsed)
    elif words[0] == "study":
        assert parsed.name in STUDIES
