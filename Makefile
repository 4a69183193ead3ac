# make demo    set up, then train on the built-in sample data
# make test    set up, then check and test; make test-slow: what it leaves out
# make test-part PART=2/6 MINUTES=15    a sixth of what it leaves out, as long as there is time
# make bench   set up, then measure: pages of docs/benchmarks that need no GPU
# make docs    set up, then build the pages and the reference of the sources: docs/_build/html/index.html
# VENV=path chooses the environment, PYTHON=python3.12 what it is made from, PROCESSES=1 how many test at once.
VENV ?= .venv
PYTHON ?= python3
PROCESSES ?= 2
PART ?= 1/6
MINUTES ?= 15
BIN := $(VENV)/bin
CODE := configs models data training evaluation inference explain deployment utils hybridmednet benchmarks tests docs/*.py \
	docs/examples *.py
# Each prints its page, writes it, and fails where something wanted is missed; the others are measured all the same.
BENCHMARKS := model precision data loop scaling startup inference evaluation export quantization selective_scan \
	gradient_checkpointing structure coverage serving

# Each process begins with a run of neighbouring cases and takes over half of what another has left when it has none.
PYTEST = $(BIN)/python -m pytest -q -n $(PROCESSES) --dist worksteal

.PHONY: demo test test-slow test-part bench docs check format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python train.py --config configs/quickstart.yaml

test: check
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-tests
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-part: $(VENV)/.installed-tests
	$(PYTEST) -m slow --part $(PART) --minutes $(MINUTES) $(PYTEST_ARGS)

bench: $(VENV)/.installed-benchmarks
	failed=; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "not as wanted:$$failed"; exit 1; }

# Warnings are errors: a link that leads nowhere, a docstring that cannot be shown.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -b html docs docs/_build/html

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

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt requirements-serve.txt docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

$(VENV)/.installed-benchmarks: $(VENV)/.installed-tests benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
