# make demo | test | lint | bench | docs | clean. The first use creates .venv and installs the tested versions.

PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml setup.py constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench docs clean

demo: $(VENV)/.installed-demo
	$(BIN)/logsnr demo

test: $(VENV)/.installed-test
	$(BIN)/pytest -q -n auto

lint: $(VENV)/.installed-dev build/mypy/logsnr
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Times beside diffusers' or of what cannot be avoided, in pairs of which the ratio counts; CPU time of one thread.
bench: $(VENV)/.installed-test
	$(BIN)/pytest -q tests/speed/bench_*.py --benchmark-warmup=on --benchmark-max-time=0.2 \
		--benchmark-timer=time.process_time --benchmark-columns=median,rounds

# The pages of docs/ as a site, in site/; `.venv/bin/mkdocs serve` shows it while it is written.
docs: $(VENV)/.installed-docs build/mypy/logsnr
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find src solvers adapters benchmarks tests -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Each environment contains the one before it, so its stamp stands for both.
$(VENV)/.installed-demo: $(INPUTS) | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	touch $(VENV)/.installed-demo $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $(VENV)/.installed-demo $(VENV)/.installed-test $@

$(VENV)/.installed-docs: $(INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	touch $(VENV)/.installed-demo $@

# The import root `logsnr`, as mypy wants it: see [tool.mypy] in pyproject.toml.
build/mypy/logsnr: Makefile
	mkdir -p $@
	ln -sf $(addprefix ../../../,src/logsnr/__init__.py src/logsnr/py.typed solvers adapters benchmarks) $@
	touch $@
