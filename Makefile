# Everything runs in a virtual environment that make sets up by itself; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two targets would set up one environment at the same time, and measure each other's load

py := "$(VENV)/bin/python"
pytest := OMP_NUM_THREADS=1 $(py) -m pytest
measured := --cov --cov-branch --cov-report=term --cov-fail-under=90
sources := pyproject.toml constraints.txt Makefile
base := $(VENV)/.evenkeel-base
dev := $(VENV)/.evenkeel-dev

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) ARGS="..." (more arguments for pytest or the demo)'

.PHONY: demo
demo: $(base) ## set up the package alone and run its demo, which ends with a report
	"$(VENV)/bin/evenkeel" demo $(ARGS)

.PHONY: test
test: $(dev) ## first tier: fast tests; with COVERAGE=1 also that they go through 90 % of all branches, in half as long again
	$(pytest) -m "not slow" -n $(WORKERS) --dist loadfile $(if $(COVERAGE),$(measured)) $(ARGS)

.PHONY: test-slow
test-slow: $(dev) ## second tier: the tests marked slow
	$(pytest) -m slow -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: test-browser
test-browser: $(dev) ## of the second tier: the report in Chromium, which must be installed (or EVENKEEL_BROWSER names it)
	$(pytest) tests/report/test_browser.py tests/report/test_export.py $(ARGS)

.PHONY: test-all
test-all: test test-slow ## both tiers

.PHONY: check
check: lint types imports docstrings wheel doctest ## all checks that are not tests

.PHONY: lint
lint: $(dev) ## ruff: rules and format
	$(py) -m ruff check
	$(py) -m ruff format --check

.PHONY: format
format: $(dev) ## let ruff mend what it can
	$(py) -m ruff check --fix
	$(py) -m ruff format

.PHONY: types
types: $(dev) ## mypy --strict
	$(py) -m mypy --strict src

.PHONY: imports
imports: $(dev) ## import-linter: the rooms import one way
	"$(VENV)/bin/lint-imports"

.PHONY: docstrings
docstrings: $(dev) ## pydoclint: documented arguments are the real ones
	"$(VENV)/bin/pydoclint" --quiet src

.PHONY: doctest
doctest: $(dev) ## run the examples in the docstrings
	$(pytest) --doctest-modules src $(ARGS)

.PHONY: wheel
wheel: $(dev) ## build dist/: the source archive, and the wheel from it
	rm -rf build dist
	$(py) -m build

.PHONY: setup
setup: $(dev) ## set up the environment with everything that developers need
	@echo 'The environment $(VENV) is ready.'

.PHONY: clean
clean: ## remove the environment and everything that tools left behind
	if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache

# Set-up. A stamp is written last, so that an interrupted installation is never taken for a whole one. A marker stands
# from the first change to the last: where it is found, an earlier set-up was cut off, and the environment is made anew.
# An environment that works and carries no marker is kept.
$(base): $(sources)
	@$(prepare)
	@$(call install,.)
	@touch "$@"

$(dev): $(sources)
	@$(prepare)
	@$(call install,.[dev])
	@touch "$(base)" "$@"

begun := $(VENV)/.evenkeel-begun

define install
touch "$(begun)" \
&& echo 'Installing $(1) into $(VENV)' \
&& $(py) -m pip --require-virtualenv install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)' \
&& rm -f "$(begun)"
endef

define prepare
fail() { echo "error: $$1" >&2; exit 1; }; \
supported() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
isolated() { $(py) -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null; }; \
if [ ! -e "$(begun)" ] && supported $(py) && isolated && $(py) -m pip --version >/dev/null 2>&1; then exit 0; fi; \
command -v "$(PYTHON)" >/dev/null || fail 'there is no command $(PYTHON); name a Python >= 3.11: make PYTHON=python3.11 ...'; \
supported "$(PYTHON)" \
|| fail "evenkeel needs Python >= 3.11, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=python3.11 ..."; \
"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
|| fail '$(PYTHON) lacks venv or ensurepip; install them (on Debian: apt-get install python3-venv)'; \
if [ -e "$(begun)" ] || [ -f "$(VENV)/pyvenv.cfg" ]; then \
    touch "$(begun)"; \
    rm -rf "$(VENV)/bin" "$(VENV)/include" "$(VENV)/lib" "$(VENV)/lib64"; \
elif [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ]; then \
    fail '$(VENV) is no virtual environment and not empty; name another: make VENV=.venv ...'; \
fi; \
echo 'Making the virtual environment $(VENV)'; \
mkdir -p "$(VENV)" && touch "$(begun)" && "$(PYTHON)" -m venv "$(VENV)"
endef
