# Two commands to begin with: `make demo` and `make test`. Both set up the same .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export DVC_NO_ANALYTICS := 1
export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: demo test browser lint dev bench slow weights setup extras

demo: $(READY)  ## run the main job on the demo products; then open report/index.html
	$(BIN)/defectory run

test: $(READY)  ## the quick suite
	$(BIN)/python -m pytest

browser: $(READY)  ## the UI and the report in a real browser; needs chromium
	$(BIN)/python -m pytest -m browser

slow: $(READY)  ## the proofs that need minutes and memory
	$(BIN)/python -m pytest -m slow

# WORK holds what a killed run left; OPTIONS as `--steps 100 --scenes 1000` go to both
WORK ?= .defectory/weights
weights: $(READY)  ## the embedded weights from nothing, into the package: minutes on a large accelerator, days on a CPU
	$(BIN)/python -m defect_core.pretraining.backbone --work $(WORK) --export $(OPTIONS)
	$(BIN)/python -m defect_core.pretraining.transformer --work $(WORK) --export $(OPTIONS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/defectory sync --check

dev: $(READY)  ## the Dagster UI on 127.0.0.1:3000
	$(BIN)/python -m pipelines.dev

bench: $(READY)
	$(BIN)/python -m benchmarks

setup: $(READY)

extras: $(READY)  ## what the tests of Ray, S3 and Kubernetes need besides
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[ray,s3,k8s]' 'moto[server]>=5'

# uv installs the locked set in seconds; it goes into the environment itself, so a system Python that
# refuses pip is no obstacle. An existing uv is used to make the environment where `venv` has no pip.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.12, say" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { command -v uv >/dev/null && uv venv --seed --clear $(VENV); } || \
	  { echo "make: $(PYTHON) has no venv module; install it (Debian: python3-venv) or uv" >&2; exit 2; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@
