# make demo    install into .venv, distill a small data set, test it, show it
# make test    install what tests need and run them; with PRECISION=bfloat16 as on a machine on which `auto` is that
# make check   format, lint, types
# make docs    build the documentation into site/, without a network once it is installed
# make lowest  the tests with the oldest version of everything that pyproject.toml allows; gigabytes
# make release-check  build wheel and sdist, and use them where nothing else is; some minutes
# make torture kill it, starve it, lie to it: what was lost (nothing); about 20 minutes

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check docs lowest release-check torture clean

demo: .venv/installed
	$(BIN)/potstill distill --preset digits-ipc1 --out runs/demo --overwrite
	$(BIN)/potstill evaluate runs/demo --nets 10 --baseline random
	@echo "Ten digits were distilled to ten images. Look at them: runs/demo/distilled.png"

test: .venv/installed-dev
	POTSTILL_AUTO_PRECISION=$(PRECISION) $(BIN)/python -m pytest -n auto

check: .venv/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/zensical build --strict --clean
	@echo "Open site/index.html"

lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check pytest pytest-xdist hypothesis 'pandas<3' \
	  zensical mkdocstrings-python $$($(PYTHON) benchmarks/lowest.py)
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	.venv-lowest/bin/python -m pytest -n auto -p no:cacheprovider

release-check: .venv/installed-dev
	$(PIP) build twine
	$(BIN)/python benchmarks/release.py

torture: .venv/installed-dev
	$(BIN)/python benchmarks/torture.py

clean:
	rm -rf .venv .venv-lowest runs site dist .pytest_cache .mypy_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"potstill needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	@echo "Installing into .venv (PyTorch first; about a minute)"
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[test,check]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	@touch $@
