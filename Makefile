# Everything a person does with this checkout. Needs python3 (3.11 or newer), git and make; the rest sets itself up.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.shoal-ready
CHECKED := $(wildcard shared services tests loadtest examples)
# Extra arguments for pytest, such as: make test ARGS="tests/wire -x"
ARGS ?=
# For make simulate: how many seeds, from which, in how many processes (0: one a core).
SEEDS ?= 10000
FIRST ?= 0
JOBS ?= 0

.PHONY: help demo test simulate lint format setup lock clean
.DEFAULT_GOAL := help

help: ## say what can be done here
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## score the HumanEval benchmark in real sandboxes on this machine
	@echo "== demo: HumanEval in sandboxes on this machine"
	@$(BIN)/python examples/humaneval/run.py

test: $(READY) ## lint, then every test; not zero when anything fails
	@lint=0; \
	$(MAKE) --no-print-directory lint || lint=$$?; \
	echo "== test: pytest"; \
	tests=0; \
	sh tests/run.sh $(ARGS) || tests=$$?; \
	if [ $$lint -ne 0 ]; then echo "make test: lint failed, see above" >&2; fi; \
	if [ $$tests -ne 0 ]; then echo "make test: tests failed, see above" >&2; fi; \
	[ $$lint -eq 0 ] && [ $$tests -eq 0 ]

simulate: $(READY) ## run the whole cluster on simulated time under faults, SEEDS times: make simulate SEEDS=100000
	@echo "== simulate: $(SEEDS) seeds of the cluster under faults"
	@$(BIN)/python tests/simulation/seeds.py --first $(FIRST) --seeds $(SEEDS) --jobs $(JOBS)
	@echo "== simulate: planted bugs, each of which must be found"
	@$(BIN)/python tests/simulation/seeds.py --bugs

lint: $(READY) ## style, types and import rules
	@status=0; \
	echo "== lint: ruff check"; $(BIN)/ruff check . || status=1; \
	echo "== lint: ruff format --check"; $(BIN)/ruff format --check . || status=1; \
	echo "== lint: mypy --strict"; $(BIN)/python -m mypy --strict $(CHECKED) || status=1; \
	echo "== lint: import rules"; $(BIN)/lint-imports --no-cache --no-logo || status=1; \
	exit $$status

format: $(READY) ## lay the code out as lint wants it
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

setup: $(READY) ## make .venv with exactly the packages of requirements/dev.lock

$(READY): requirements/dev.lock pyproject.toml requirements/setup.sh
	@PYTHON="$(PYTHON)" sh requirements/setup.sh
	@touch $@

lock: $(READY) ## renew requirements/dev.lock from pyproject.toml (needs uv)
	@sh requirements/lock.sh

clean: ## remove what the other targets made, .venv included
	@echo "== clean: .venv, caches, builds, reports"
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist reports
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
