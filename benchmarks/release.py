"""Would a release be right? Builds wheel and sdist, and uses them where nothing else is.

    make release-check      # some minutes; dist/ then holds what was checked

The version must be in CHANGELOG.md and CITATION.cff. The wheel must hold every file of the package
that is under version control, and no other. Both files are installed in a fresh environment, torch
first, and from an empty folder the command lists its parts, verifies a ready-made set, distils
digits, measures the set and writes a report.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import potstill

ROOT = Path(__file__).parent.parent
DIST, CONSTRAINTS = ROOT / "dist", ROOT / "constraints.txt"
MOST_BYTES = 5_000_000
NEEDED = ("LICENSE", "README.md", "pyproject.toml")
"""Files of the sdist beside the package."""
QUICK = "--steps 5 --width 8 --lengths 50 --validation-nets 1"
USES = (
    "--version",
    "list",
    "doctor",
    "zoo",
    "zoo verify iris-ipc1 --nets 3",
    f"distill --data digits {QUICK} --out run",
    "evaluate run --nets 2 --baseline random",
    "report run",
    "export run --format parquet",
)


def require(good: bool, what: str) -> None:
    """End with a sentence unless something holds."""
    if not good:
        raise SystemExit(f"release-check: {what}")


def told(*words: str | Path, folder: Path = ROOT) -> str:
    """Run a command; end with what it says if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=clean, capture_output=True, text=True
    )
    require(
        done.returncode == 0,
        f"{' '.join(map(str, words))} ends with {done.returncode}:\n{done.stdout}{done.stderr}",
    )
    return done.stdout


def check_version() -> None:
    """The version stands where users read it."""
    version = potstill.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    require(
        re.search(r"^## (.*)$", changes, re.MULTILINE)[1] == version,  # type: ignore[index]
        f"CHANGELOG.md must begin with version {version}",
    )
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    require(f"\nversion: {version}\n" in cited, f"CITATION.cff must say version {version}")


def built() -> tuple[Path, Path]:
    """Build a wheel and an sdist; return them."""
    shutil.rmtree(DIST, ignore_errors=True)
    told(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    told(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both hold the package as it is under version control."""
    known = set(told("git", "ls-files", "potstill").splitlines())
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    require(held == known, f"the wheel differs from the package in {sorted(held ^ known)}")
    require(wheel.stat().st_size < MOST_BYTES, f"the wheel has {wheel.stat().st_size:,} bytes")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = (known | set(NEEDED)) - names
    require(not missing, f"the sdist lacks {sorted(missing)}")


def check_use(file: Path) -> None:
    """What was built works in an environment of its own, from an empty folder."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        told(sys.executable, "-m", "venv", place / "venv")
        python = place / "venv" / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS)
        torch = re.search(r"^torch==\S+", CONSTRAINTS.read_text(), re.MULTILINE)
        assert torch
        told(*pip, torch[0])
        told(*pip, file)
        empty = place / "empty"
        empty.mkdir()
        for use in USES:
            told(place / "venv" / "bin" / "potstill", *use.split(), folder=empty)
            print(f"{file.name}: potstill {use}", flush=True)
        told(python, "-m", "potstill", "--version", folder=empty)


def main() -> None:
    """Check everything."""
    check_version()
    files = built()
    check_contents(*files)
    for file in files:
        check_use(file)
    sizes = ", ".join(f"{file.name}: {file.stat().st_size:,} bytes" for file in files)
    print(f"release-check passed; {sizes}")


if __name__ == "__main__":
    main()
