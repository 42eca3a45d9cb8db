# make run | video | test | unit | check | fix | bench | docs | lock | sbom | clean. Each sets up what it needs; the
# second time that takes no time.
#
# Two environments: .venv-run holds what the program needs to speak (no torch), .venv what it takes to train, test
# and measure. What they install is locked in requirements/, by version and hash; `make lock && make test` lets in
# what is newer.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

RUN_ENV := .venv-run
DEV_ENV := .venv
LOCK_ENV := .venv-lock
SPEAKER ?= May
INPUT ?= examples/hello.wav
OUTPUT ?= talking.mp4
LOCK ?= requirements/run.txt
export SPEAKER INPUT OUTPUT LOCK  # recipes name them as the shell's, whatever is in them

# The first Python on the path that is new enough; PYTHON=... names another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14 python,\
	$(if $(shell command -v $(p) >/dev/null 2>&1 && \
		$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(p))))

.PHONY: help run video test unit check fix bench docs lock sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_ENV)/.installed ## set up, then serve: open the address it prints and speak
	$(RUN_ENV)/bin/geneface-stream --speaker "$$SPEAKER" $(ARGS)

video: $(RUN_ENV)/.installed ## set up, then turn INPUT (a recording) into OUTPUT (a video)
	$(RUN_ENV)/bin/geneface-stream --speaker "$$SPEAKER" --input "$$INPUT" --output "$$OUTPUT" $(ARGS)

# Coverage is measured from Python 3.12 on, by sys.monitoring. On 3.11 it traces every thread, and of two threads that start
# at once one may die there: "Cannot install a trace function while another trace function is being installed".
test: $(DEV_ENV)/.installed ## set up, then run every test, and see that they cover what they did
	@if $(DEV_ENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
		set -e; $(DEV_ENV)/bin/coverage run -m pytest; \
		echo 'Lines covered, in percent; "$(DEV_ENV)/bin/coverage report -m" names those that are not:'; \
		$(DEV_ENV)/bin/coverage report --format=total; \
	else $(DEV_ENV)/bin/python -m pytest; fi

unit: $(DEV_ENV)/.installed ## run the unit tests: no network, no browser
	$(DEV_ENV)/bin/python -m pytest -m unit $(ARGS)

check: $(DEV_ENV)/.installed ## lint, format, types, layers, the types of the page
	$(DEV_ENV)/bin/ruff check .
	$(DEV_ENV)/bin/ruff format --check .
	$(DEV_ENV)/bin/mypy
	$(DEV_ENV)/bin/lint-imports
	@command -v npm >/dev/null || { echo "npm was not found; on Debian: apt-get install npm" >&2; exit 2; }
	@[ -x node_modules/.bin/tsc ] || npm install --no-package-lock --no-audit --no-fund --loglevel=error
	npm run --silent check

fix: $(DEV_ENV)/.installed ## mend what ruff can mend, and format
	$(DEV_ENV)/bin/ruff check --fix .
	$(DEV_ENV)/bin/ruff format .

bench: $(DEV_ENV)/.installed ## measure renderer, pipeline and live latency on this machine
	$(DEV_ENV)/bin/python -m benchmarks.render --speaker "$$SPEAKER" --sizes 128 192 256 512
	$(DEV_ENV)/bin/python -m benchmarks.pipeline --speaker "$$SPEAKER" --audio "$$INPUT"
	$(DEV_ENV)/bin/python -m benchmarks.latency --speaker "$$SPEAKER" --audio "$$INPUT"

# Names that exist only while a type is checked stay names on the page.
docs: $(DEV_ENV)/.installed ## write docs/api/: a page for each module, from its docstrings
	$(DEV_ENV)/bin/python -W 'ignore:Error parsing type annotation' -m pdoc --docformat google --output-directory docs/api \
		streaming models cuda_kernels export training preparation

clean: ## remove the environments and what tools left behind
	rm -rf $(RUN_ENV) $(DEV_ENV) $(LOCK_ENV) node_modules build dist docs/api *.egg-info .coverage \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# uv resolves once for every platform and Python from 3.11 on; each lock is a part of that one resolution.
UV_COMPILE = $(LOCK_ENV)/bin/uv pip compile pyproject.toml --group build --quiet --universal --fork-strategy fewest \
	--python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

lock: $(LOCK_ENV)/bin/uv ## take the newest releases that pyproject.toml allows into requirements/
	$(UV_COMPILE) --upgrade --extra train --extra dev --extra cuda --no-header --output-file requirements/.all.txt
	$(UV_COMPILE) --generate-hashes --constraints requirements/.all.txt --output-file requirements/run.txt
	$(UV_COMPILE) --generate-hashes --constraints requirements/.all.txt --extra cuda --output-file requirements/cuda.txt
	$(UV_COMPILE) --generate-hashes --constraints requirements/.all.txt --extra train --extra dev \
		--output-file requirements/dev.txt
	@rm requirements/.all.txt

$(LOCK_ENV)/bin/uv:
	$(call create,$(LOCK_ENV))
	$(LOCK_ENV)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'

sbom: $(DEV_ENV)/.installed ## write sbom.cdx.json: what LOCK installs, as CycloneDX
	$(DEV_ENV)/bin/python -W ignore::UserWarning -m cyclonedx_py requirements "$$LOCK" --pyproject pyproject.toml --mc-type application \
		--output-reproducible --spec-version 1.6 --output-file sbom.cdx.json

# An environment goes with the Python that it was made by: after an upgrade of that it is made anew.
works = $(1)/bin/python -c 'import pip' 2>/dev/null
.SECONDEXPANSION:
anew = $(shell $(call works,$(1)) || echo ANEW)
.PHONY: ANEW
ANEW:

$(RUN_ENV)/.installed: pyproject.toml requirements/run.txt $$(call anew,$(RUN_ENV))
	$(call install,$(RUN_ENV),requirements/run.txt)

$(DEV_ENV)/.installed: pyproject.toml requirements/dev.txt $$(call anew,$(DEV_ENV))
	$(call install,$(DEV_ENV),requirements/dev.txt)

# create ENVIRONMENT
define create
@if [ -z "$(PYTHON)" ]; then \
	echo "Python 3.11 or newer was not found; install it, or name it: make PYTHON=/path/to/python3" >&2; exit 2; fi
@if ! $(call works,$(1)); then \
	if [ -e $(1)/.installed ] || [ ! -x $(1)/bin/python ]; then rm -rf $(1); fi; \
	echo "Creating $(1) with $$($(PYTHON) --version)"; \
	$(PYTHON) -m venv $(1) || { \
		rm -rf $(1); echo "$(PYTHON) cannot create environments; on Debian: apt-get install python3-venv" >&2; exit 2; }; fi
endef

# install ENVIRONMENT,LOCK
define install
$(call create,$(1))
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
@touch $@
endef
