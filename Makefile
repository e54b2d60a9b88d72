# Two commands to start with: `make demo` and `make test`. Both create the same environment in .venv, once.
PYTHON ?= python3
# Another Python has an environment of its own: `make test PYTHON=python3.13`.
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One test process per core. Each computes on one thread, so that they do not slow each other.
JOBS ?= auto
export DVC_NO_ANALYTICS := 1
export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: demo test browser lint dev bench slow weights setup extras lock

demo: $(READY)  ## run the whole graph on the demo products; then open report/index.html
	$(BIN)/defectory run

test: $(READY)  ## the quick suite, with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --cov --cov-report=term:skip-covered

browser: $(READY)  ## the UI and the report in a real browser; needs chromium
	$(BIN)/python -m pytest -m browser

slow: $(READY)  ## proofs that need minutes and memory
	$(BIN)/python -m pytest -m slow

# WORK holds what an interrupted run left; OPTIONS such as `--steps 100 --scenes 1000` are passed to both commands.
WORK ?= .defectory/weights
weights: $(READY)  ## train the embedded weights from nothing: minutes on a large GPU, days on a CPU
	$(BIN)/python -m defect_core.pretraining.backbone --work $(WORK) --export $(OPTIONS)
	$(BIN)/python -m defect_core.pretraining.transformer --work $(WORK) --export $(OPTIONS)

lint: $(READY)  ## style, types, import layers, words, dvc.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_language.py
	$(BIN)/python .ci/check_sizes.py
	$(BIN)/basedpyright
	$(BIN)/defectory sync --check

dev: $(READY)  ## the Dagster UI on 127.0.0.1:3000
	$(BIN)/python -m pipelines.dev

bench: $(READY)
	$(BIN)/python -m benchmarks

setup: $(READY)

extras: $(READY)  ## what the tests of Ray, S3 and Kubernetes need besides
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[ray,s3,k8s]' 'moto[server]>=5'

lock:  ## resolve requirements.lock again, for all supported Python versions and platforms
	$(BIN)/uv pip compile --quiet --no-header --no-emit-index-url --universal pyproject.toml --extra dev -o requirements.lock

# uv installs the locked set in seconds; it is installed into the environment, so that a system Python that refuses pip
# is no obstacle. An existing uv creates the environment if this Python is missing or has no `venv` with pip.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || command -v uv >/dev/null || \
	  { echo "make: $(PYTHON) not found; install it, or uv, which installs it" >&2; exit 2; }
	@! command -v $(PYTHON) >/dev/null || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; use for example make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || \
	  { command -v uv >/dev/null && uv venv --seed --clear --python $(notdir $(PYTHON)) $(VENV); } || \
	  { echo "make: $(PYTHON) has no venv module; install it (Debian: python3-venv) or uv" >&2; exit 2; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@
