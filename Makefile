# Two commands: `make train` and `make test`. Everything installs into .venv here, from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := sample
.DEFAULT_GOAL := help
.PHONY: help venv train test types suite faults fuzz soak bench bench-full clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.train-ready  ## make the virtual environment, or repair it

# The stamps hold the checksum of what was installed: a changed pin installs again, an interrupted install too.
$(VENV)/.train-ready: constraints.txt pyproject.toml
	@rm -f $@
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test-ready: $(VENV)/.train-ready
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

TRAIN = $(BIN)/python train_body.py --config configs/sample.yaml
train: $(VENV)/.train-ready  ## write the sample data set, train a small network on it, draw its curves
	$(BIN)/bodyseg sample $(SAMPLE)
	@echo "$(TRAIN) --overwrite"
	@trap : INT; $(TRAIN) --overwrite || { status=$$?; echo; echo "to go on with it: $(TRAIN) --resume"; exit $$status; }
	$(BIN)/bodyseg plot logs/sample_*

test: $(VENV)/.test-ready  ## run the whole test suite, the linters, the type checker and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory -j 2 types suite

types:  # beside the tests, which wait for the disk and for each other a fifth of the time
	$(BIN)/mypy

suite:
	$(BIN)/pytest -n 3 --dist worksteal

faults: $(VENV)/.test-ready  ## write the table of docs/reliability.md from the tests that inject the faults
	$(BIN)/pytest -n 2 -m fault --write-faults

SOAK_MINUTES ?= 6
soak: $(VENV)/.test-ready  ## kill training, caching, prediction and evaluation at random moments, go on, compare (SOAK_MINUTES=N)
	$(BIN)/python -m tests.soak --kills 50
	$(BIN)/python -m tests.soak_commands --minutes $(SOAK_MINUTES)

FUZZ_EXAMPLES ?= 20000
fuzz: $(VENV)/.test-ready  ## mutate files of every format at random, some ten minutes (FUZZ_EXAMPLES=N a test)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest -n 2 --timeout 3600 tests/whole_program/test_fuzz.py tests/whole_program/test_fuzz_own_files.py

# HIPPOCAMPUS=DIR adds the epoch on real scans; ROWS=step,gpu picks rows. See `python -m benchmarks --help`.
BENCH = $(BIN)/python -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(HIPPOCAMPUS),--hippocampus $(HIPPOCAMPUS))

bench: $(VENV)/.test-ready  ## measure ours beside plain MONAI at reduced sizes, in minutes
	$(BENCH)

bench-full: $(VENV)/.test-ready  ## the same at the documented size, 160×160×256 (wants 24 GiB and an hour and a half)
	$(BENCH) --full

clean:  ## remove what the targets made (never the run folders in logs/)
	rm -rf $(VENV) $(SAMPLE) cache build *.egg-info
