# `make help` lists what there is. Another Python (3.11 or newer) is chosen with: make PYTHON=python3.12 test

PYTHON ?= python3
SERVE ?= --enable-push --listen 127.0.0.1:11001 ./millpond-data
ARGS ?=
ROUNDS ?= 1000
CUTS ?= 5000
OPT ?= /opt/millpond
BINDIR ?= /usr/local/bin

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMMANDS := millpond bst-artifact-server bst-artifact-receive
# What a command has to say is of interest only if it fails.
quietly = said=$$($(1) 2>&1) || { printf '%s\n' "$$said" >&2; exit 1; }
# What the venv was made for. A tree that was moved, or another PYTHON, makes it anew.
VENV_KEY := $(CURDIR) $(PYTHON)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test soak setup check bench bench-check fix install uninstall clean force

help: ## this list
	@echo 'make TARGET [PYTHON=python3.12] [ARGS=...]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

serve: $(VENV)/has-server ## a cache in ./millpond-data for the builds on this machine; prints how to use it
	@exec $(BIN)/millpond serve $(SERVE) $(ARGS)

test: $(VENV)/has-test ## every test; installs what they need (ARGS='-k tls' for pytest)
	@tests/installing/install $(PYTHON)
	@MILLPOND_SKIP="$$(tests/installing/excused)" $(BIN)/python -m pytest -n 3 $(ARGS)

soak: $(VENV)/has-test ## kill servers and cut the power for hours (ROUNDS=1000 CUTS=5000 ARGS='--seed S --block N')
	@tests/installing/install $(PYTHON)
	@PYTHONPATH=tests $(BIN)/python -m faults.campaign --rounds $(ROUNDS) $(ARGS)
	@MILLPOND_POWER_CUTS=$(CUTS) $(BIN)/python -m pytest -q tests/faults/power_loss

setup: $(VENV)/has-dev ## all that is needed to work on Millpond
	@tests/installing/install $(PYTHON)

check: $(VENV)/has-dev ## lint, types, import contracts and the quick tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --ignore tests/system --ignore tests/faults $(ARGS)

bench: setup ## measure against the other servers (three quarters of an hour)
	$(BIN)/python -m benchmarks run $(ARGS)

bench-check: setup ## measure, then compare with benchmarks/bars.toml (ARGS=FILE compares that result instead)
	$(BIN)/python -m benchmarks check $(ARGS)

fix: $(VENV)/has-dev ## what can be put right by itself: imports, layout, generated pages
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python -m millpond.cli.reference

clean: ## remove venvs, caches and builds; ./millpond-data stays
	rm -rf $(VENV) .venv-bst .venv-bst-* build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- venvs -----------------------------------------------------------------------------------------------------------

# Debian keeps venv in a package of its own: root gets it, others are told.
define usable_python
	set -e; \
	missing=; \
	if ! command -v $(PYTHON) >/dev/null; then \
		[ $(PYTHON) = python3 ] || { echo "there is no '$(PYTHON)': make PYTHON=... names another" >&2; exit 1; }; \
		missing='python3 python3-venv'; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$$($(PYTHON) --version) is too old, 3.11 is needed: make PYTHON=python3.12 names another" >&2; exit 1; \
	elif ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		missing=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	fi; \
	if [ -n "$$missing" ]; then \
		if [ $$(id -u) != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "missing packages: $$missing (as root: apt-get install $$missing)" >&2; exit 1; \
		fi; \
		echo "installing Debian packages: $$missing"; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; } \
			>/dev/null </dev/null; \
	fi
endef

ifneq ($(shell cat $(VENV)/made-for 2>/dev/null),$(VENV_KEY))
$(VENV)/made-for: force
endif
$(VENV)/made-for:
	@$(usable_python)
	@what='import sys; print(sys.version, sys.argv[1] or sys.prefix)'; \
	if [ "$$($(BIN)/python -c "$$what" '' 2>/dev/null)" != "$$($(PYTHON) -c "$$what" "$(CURDIR)/$(VENV)")" ]; then \
		echo "making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo '$(VENV_KEY)' >$@

$(VENV)/has-%: pyproject.toml $(VENV)/made-for
	@echo 'installing into $(VENV): millpond$(if $(EXTRA),[$(EXTRA)])'
	@$(call quietly,$(PIP) install -e '.$(if $(EXTRA),[$(EXTRA)])')
	@$(BIN)/python -m compileall -q src/millpond  # pip does so for what it copies, and bst-artifact-receive is to start quickly
	@touch $@
$(VENV)/has-test: EXTRA := test
$(VENV)/has-dev: EXTRA := dev

# -- the machine -----------------------------------------------------------------------------------------------------

# Old unit files look for the commands in $(BINDIR). Only links of ours are ever replaced or removed.
define is_ours
[ -L "$$link" ] && [ "$$(readlink "$$link")" = "$(OPT)/bin/$$command" ]
endef

install: ## as root: /opt/millpond, its commands linked into /usr/local/bin
	@[ $$(id -u) = 0 ] || { echo 'make install needs root' >&2; exit 1; }
	@$(usable_python)
	@if [ -e $(OPT) ] && [ ! -e $(OPT)/made-by-millpond ]; then \
		echo '$(OPT) is there and not ours: remove it, or choose another with make OPT=... install' >&2; exit 1; \
	fi
	@for command in $(COMMANDS); do \
		link=$(BINDIR)/$$command; \
		if { [ -e "$$link" ] || [ -L "$$link" ]; } && ! { $(is_ours); }; then \
			echo "$$link is there and not ours: remove it first" >&2; exit 1; \
		fi; \
	done
	mkdir -p $(OPT) $(BINDIR)
	touch $(OPT)/made-by-millpond
	$(PYTHON) -m venv $(OPT)
	@echo 'installing millpond into $(OPT)'
	@$(call quietly,$(OPT)/bin/python -m pip --quiet --disable-pip-version-check install '.[web]')
	for command in $(COMMANDS); do ln -sfn $(OPT)/bin/$$command $(BINDIR)/$$command; done

uninstall: ## as root: undo make install; repositories stay
	@[ $$(id -u) = 0 ] || { echo 'make uninstall needs root' >&2; exit 1; }
	@for command in $(COMMANDS); do \
		link=$(BINDIR)/$$command; if $(is_ours); then rm -f "$$link"; fi; \
	done
	@if [ -e $(OPT)/made-by-millpond ]; then rm -rf $(OPT); fi
