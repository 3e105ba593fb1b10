# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`. Neither needs root or Docker.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test test-long test-browser lint format clean

setup: .venv/ready

# torch first and pinned: a later resolve must find it and not fetch another build
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/milcore synth demo/cohort --slides 48 --seed 0
	$(BIN)/python -m pipeline run --manifest demo/cohort/manifest.csv --store-uri demo/store --run-uri demo/run

test: setup
	$(BIN)/python -m pytest

test-long: setup
	$(BIN)/python -m pytest -m long

# Chromium comes from Debian's packages, which takes root; where it is installed already nothing is fetched
test-browser: setup
	command -v chromium chromedriver || (apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver)
	$(BIN)/python -m pytest -m browser tests/report

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo build dist *.egg-info
