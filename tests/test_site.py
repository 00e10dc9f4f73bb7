"""The documentation site: it builds, every page can be reached, every link leads somewhere, and the
tutorial's code runs.
"""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
SHORT = "--steps 3 --unroll 4 --window 2 --lengths 20 --validation-nets 1"


class Links(HTMLParser):
    """Local links, sources and names of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.names = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.names |= {known[name] for name in ("id", "name") if known.get(name)}
        if tag == "a" and known.get("href"):
            self.links.add(known["href"])
        if tag in ("img", "script", "source") and known.get("src"):
            self.loaded.add(known["src"])
        if tag == "link" and known.get("rel") in ("stylesheet", "icon"):
            self.loaded.add(known["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", place / "docs")
    shutil.copy(ROOT / "zensical.toml", place)
    (place / "potstill").symlink_to(ROOT / "potstill")
    told = subprocess.run(
        [Path(sys.executable).parent / "zensical", "build", "--strict"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        # No network: whatever would be fetched fails.
        env={**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return {
        path.relative_to(place / "site"): Links(path.read_text())
        for path in (place / "site").rglob("*.html")
    }, place / "site"


def test_every_page_can_be_reached(site):
    pages, _ = site
    reached, waiting = set(), [Path("index.html")]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in pages[page].links:
            target = os.path.normpath(page.parent / link.partition("#")[0])
            if Path(target) in pages:
                waiting.append(Path(target))
    assert {str(page) for page in pages} - {str(page) for page in reached} == {"404.html"}


def test_every_link_leads_somewhere(site):
    pages, folder = site
    dead = []
    for page, found in pages.items():
        if page.name == "404.html":
            continue
        for link in {*found.links, *found.loaded}:
            if re.match(r"(https?:|mailto:|data:|javascript:)", link):
                continue
            file, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / file)) if file else page
            if target in pages:
                if anchor and anchor not in pages[target].names and anchor != "__skip":
                    dead.append(f"{page}: {link}")
            elif not (folder / target).is_file() and not (folder / target / "index.html").is_file():
                dead.append(f"{page}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site):
    foreign = {link for found in site[0].values() for link in found.loaded if "//" in link}
    assert foreign == set()


def test_the_reference_has_every_public_name(site):
    import potstill

    names = site[0][Path("reference.html")].names
    assert {f"potstill.{name}" for name in potstill.__all__} <= names


def test_the_tutorial_runs_from_its_first_line_to_its_last(tmp_path):
    blocks = re.findall(r"```(bash|python)\n(.*?)```", TUTORIAL, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "bash", "bash", "python", "bash"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = ""
    for kind, code in blocks:
        if kind == "bash":
            code = code.replace("--quick", f"--quick {SHORT}").replace("--nets 5", "--nets 1")
            words = ["bash", "-ec", code]
        else:
            words = [sys.executable, "-c", code]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told += done.stdout
    assert "distilled.png" in told
    assert re.search(r"^digit \d$", told, re.MULTILINE), "the network has named the picture"
    assert (tmp_path / "first.html").stat().st_size > 10_000
