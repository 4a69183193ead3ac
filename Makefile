# make demo    set up, then train on the built-in sample data
# make test    set up, then check and test
# VENV=path chooses the environment, PYTHON=python3.12 what it is made from, PROCESSES=1 how many test at once.
VENV ?= .venv
PYTHON ?= python3
PROCESSES ?= 2
BIN := $(VENV)/bin
CODE := configs models data training evaluation inference explain deployment utils benchmarks tests *.py

.PHONY: demo test check format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python train.py --config configs/quickstart.yaml

test: check
	$(BIN)/python -m pytest -q -m "not slow" -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.installed-tests
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.installed-tests
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
