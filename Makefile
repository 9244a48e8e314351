# The project's few commands; `make` alone lists them.
#
#   make test PYTHON=/path/to/python3.10    try this interpreter first
#   make test STACK=modern                  TensorFlow 2.19 or later on any Python
#   make test ARGS=tests/attacks            hand pytest (or the quick start) arguments

STACK :=
ARGS :=
# Each stack has an environment of its own; setup.py says what they hold.
VENV := .venv$(addprefix -,$(STACK))
export DAT_TF_STACK := $(STACK)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The longest files come first (tests/conftest.py), so that both workers end together.
PYTEST = $(VENV)/bin/python -m pytest -q --durations=10 -n 2 --dist loadfile \
  --no-loadscope-reorder
# What another TensorFlow is most likely to break.
QUICK := tests/attacks tests/base tests/communication tests/models tests/optimizers \
  tests/program/test_checkpointing.py tests/workers/test_joined.py \
  tests/test_adversarial_model.py tests/test_compat.py tests/test_distributed.py

.DEFAULT_GOAL := help
# A virtual environment half made is made anew.
.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-quick test-methods test-stacks test-all lint \
  docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1#/p' Makefile | \
	  while IFS='#' read -r target does; do printf '  %-12s %s\n' "$$target" "$$does"; done
	@echo '  PYTHON=... is the interpreter to try first, ARGS=... are handed to the program,'
	@echo '  STACK=modern, 2.18 to 2.21 or nightly is the TensorFlow, if not that of the Python.'

install: $(VENV)/.quickstart ## make the virtual environment, no more

quickstart: $(VENV)/.quickstart ## train on the digits with two workers (a few minutes)
	@$(VENV)/bin/python benchmarks/quickstart.py $(ARGS)

test: $(VENV)/.test ## run the tests, except the long ones; with STACK=nightly the quick ones
	@$(PYTEST) -m "not long" $(if $(filter nightly,$(STACK)),$(QUICK)) $(ARGS)

test-quick: $(VENV)/.test ## run the tests that another TensorFlow is most likely to break
	@$(PYTEST) -m "not long" $(QUICK) $(ARGS)

test-methods: $(VENV)/.test ## run each method on two workers, attacks with a known end, whole runs, a wheel
	@$(PYTEST) -m long $(ARGS) \
	  tests/objectives/test_conformance.py::ConformanceTest tests/attacks \
	  tests/evaluation/test_robustness.py::LinearTest \
	  tests/evaluation/test_refilling.py tests/evaluation/test_workers.py \
	  tests/program tests/test_distributed.py::RecordsTest \
	  tests/test_packaging.py tests/test_contributing.py tests/test_docs.py \
	  tests/test_gpu.py

test-stacks: $(VENV)/.test ## run what moves between the stacks (make install STACK=modern first)
	@$(VENV)/bin/python -m pytest -q -rs -m long $(ARGS) tests/test_between_stacks.py

test-all: $(VENV)/.test ## run all tests
	@$(VENV)/bin/python -m pytest -q --durations=10 $(ARGS)

lint: $(VENV)/.test ## check style (ruff) and types (mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy dat_tf run_dat.py tfrecords

docs: $(VENV)/.docs ## build the site of docs/ into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict $(ARGS)
	@echo "Open site/index.html."

clean: ## remove the virtual environments and what the tools left behind
	rm -rf .venv .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Prints the first interpreter that serves, or `!` and one sentence. A name on the
# PATH proves nothing: version managers leave shims that fail, and Debian's Python
# lacks ensurepip, without which venv makes no pip, until its package is installed.
define FIND_PYTHON
for python in $(PYTHON) python3.13 python3.12 python3.11 python3.10 python3.9 python3 python; do \
  version=$$("$$python" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
  case $$version in \
    3.9.*|3.10.*|3.11.*|3.12.*|3.13.*) \
      if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then echo "$$python"; exit; fi; \
      package="python$${version%.*}-venv"; \
      without="$$python ($$version) cannot make a virtual environment: apt-get install $$package" ;; \
    *) found="$$found$${found:+, }$$python ($$version)" ;; \
  esac; \
done; \
echo "! $${without:-DAT-TF needs Python 3.9 to 3.13; found $${found:-none}. Install one of \
those, or name it: make PYTHON=/path/to/python3.13}"
endef

$(VENV)/bin/python:
	$(eval CHOICE := $(shell $(FIND_PYTHON)))
	$(if $(filter !,$(CHOICE)),$(error $(wordlist 2,99,$(CHOICE))))
	@echo "Making $(VENV) with $(CHOICE)."
	@$(CHOICE) -m venv --clear $(VENV)
	@$@ -m pip install -qq --upgrade pip

# One stamp an extra: pip runs again only when setup.py has changed.
$(VENV)/.%: $(VENV)/bin/python setup.py
	@echo "Installing DAT-TF with its $* extra into $(VENV); this takes a minute or two."
	@$(VENV)/bin/python -m pip install -qq -e '.[$*]'
	@touch $@
