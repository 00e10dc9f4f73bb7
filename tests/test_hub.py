"""Publishing a set and fetching it, against a server on this machine that speaks the Hub's API."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import potstill
from potstill.cli.parser import main
from potstill.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"


class Hub(BaseHTTPRequestHandler):
    """What of the Hub's API publishing and fetching use."""

    repos: dict[str, dict[str, bytes]] = {}  # noqa: RUF012
    created: list[dict] = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def said(self, status=200, **content):
        self.answer(json.dumps(content).encode(), status, Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.said(401, error="Invalid username or password.")
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            Hub.created.append(asked)
            Hub.repos.setdefault(name, {})
            self.said(url=f"{self.server.url}/datasets/{name}", name=name)
        elif self.path == "/api/validate-yaml":
            self.said(errors=[], warnings=[])
        elif found := re.fullmatch(r"/api/datasets/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            modes = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in files
            ]
            self.said(files=modes)
        elif found := re.fullmatch(r"/api/datasets/(.+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    Hub.repos[found[1]][entry["value"]["path"]] = content
            url = f"{self.server.url}/datasets/{found[1]}/commit/{COMMIT}"
            self.said(commitUrl=url, commitOid=COMMIT)
        else:
            self.said(404, error="not found")

    def do_GET(self):
        found = re.fullmatch(r"/datasets/(.+)/resolve/([\w.-]+)/(.+)", self.path)
        repo = Hub.repos.get(found[1]) if found else None
        if repo is None:
            self.answer(status=404, X_Error_Code="RepoNotFound")
        elif found[2] not in ("main", COMMIT):
            self.answer(status=404, X_Error_Code="RevisionNotFound")
        elif found[3] not in repo:
            self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            content = repo[found[3]]
            tag = hashlib.sha256(content).hexdigest()
            self.answer(content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(tmp_path):
    Hub.repos, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def potstill_there(hub, tmp_path, *words, token=TOKEN):
    """Run the command with that server as the Hub, in an empty home."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    known |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(
        [sys.executable, "-m", "potstill", *map(str, words)],
        capture_output=True, text=True, check=False, env=known, cwd=tmp_path,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "digits"
    potstill.distill(
        data="digits", method="random", model="mlp", width=8, lengths=(5,), validation_nets=1,
        out=place, progress=False,
    )  # fmt: skip
    potstill.evaluate(place, nets=2, baselines=("random",), progress=False)
    return place


def test_a_set_is_published_and_comes_back_to_the_byte(hub, run, tmp_path):
    done = potstill_there(hub, tmp_path, "push", run, "--to", "me/digits", "--license", "cc0-1.0")
    assert (done.returncode, done.stdout) == (0, "published: hf://me/digits\n"), done.stderr
    sent = Hub.repos["me/digits"]
    assert {"README.md", "distilled.safetensors", "data.parquet", "distilled.png"} <= sent.keys()
    assert sent["distilled.safetensors"] == (run / "distilled.safetensors").read_bytes()
    assert Hub.created[0]["type"] == "dataset"
    assert not any(str(run.parent).encode() in content for content in sent.values())
    done = potstill_there(hub, tmp_path, "evaluate", "hf://me/digits", "--nets", "1")
    assert done.returncode == 0, done.stderr
    assert "distilled" in done.stdout
    kept = list((tmp_path / "cache").rglob("evaluation.json"))
    assert [one.parent.name for one in kept] == [COMMIT[:12]]
    done = potstill_there(
        hub, tmp_path, "distill", "--data", "digits", "--init", "hf://me/digits", "--method", "dm",
        "--model", "mlp", "--width", 8, "--steps", 2, "--lengths", 5, "--out", "more",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_card_tells_figures_and_where_they_end(run, tmp_path, capsys):
    folder = tmp_path / "card"
    words = ["push", str(run), "--to", "me/digits", "--dry-run", str(folder)]
    assert main([*words, "--license", "cc0-1.0"]) == 0
    assert capsys.readouterr().out == f"written: {folder}\n"
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: cc0-1.0" in front
    assert "image-classification" in front
    (row,) = potstill.evaluate(run, nets=2, progress=False)
    assert str(row.accuracy) in card
    digest = hashlib.sha256((run / "distilled.safetensors").read_bytes()).hexdigest()
    for told in (digest, 'potstill.load("hf://me/digits")', "## Not good for", "| random | 10 |"):
        assert told in card
    assert "was not measured (`potstill audit`)" in card
    assert main(words) == 2
    assert "exists; choose another folder" in capsys.readouterr().err


def test_without_a_test_figure_there_is_no_card(tmp_path):
    potstill.distill(
        data="digits", method="random", model="mlp", width=8, lengths=(5,), validation_nets=1,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"run `potstill evaluate .* --baseline random` first"):
        potstill.push(tmp_path / "run", "me/digits", folder=tmp_path / "card")
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize("name", ["digits", "me/", "me/digits@main", "a/b/c", "hf://"])
def test_a_name_that_is_none_gets_a_sentence(run, name):
    with pytest.raises(InputError, match="to must be user/name"):
        potstill.push(run, name)


def test_what_the_hub_refuses_or_lacks_gets_a_sentence(hub, run, tmp_path):
    done = potstill_there(hub, tmp_path, "push", run, "--to", "me/digits", token="hf_wrong")
    assert (done.returncode, "hf auth login" in done.stderr) == (2, True), done.stderr
    Hub.repos["me/other"] = {"images.npz": b""}
    for name, said in (
        ("me/none", "there is no such set, or it is private"),
        ("me/other", "it holds no distilled.safetensors"),
        ("me/other@gone", "there is no such revision"),
        ("none", "is named hf://user/name"),
    ):
        done = potstill_there(hub, tmp_path, "evaluate", f"hf://{name}")
        assert done.returncode == 2, name
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_set_that_was_changed_on_its_way_is_not_read(hub, run, tmp_path):
    content = bytearray((run / "distilled.safetensors").read_bytes())
    content[-1] ^= 1
    Hub.repos["me/changed"] = {"distilled.safetensors": bytes(content)}
    done = potstill_there(hub, tmp_path, "evaluate", "hf://me/changed")
    assert (done.returncode, "damaged" in done.stderr) == (2, True), done.stderr


def test_a_hub_that_is_not_there_gets_a_sentence(run, tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(InputError, match="cannot be reached"):
        potstill.load("hf://me/digits")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", unreachable)
    with pytest.raises(InputError, match="cannot publish me/digits: the Hub cannot be reached"):
        potstill.push(run, "me/digits")
