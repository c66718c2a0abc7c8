# Needs Python 3.11 and make. Settings come from the environment or .env; PORT=… and HOST=… are short for two of them.
PYTHON := $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN := .venv/bin

.PHONY: run test test-all test-agents check bench image lock sbom audit

run: .venv/.installed
	$(BIN)/parley fetch
	$(BIN)/parley migrate upgrade
	$(BIN)/parley serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

# in as many workers as there are processors, four at most
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

# each module is compiled once, not by each worker and each service that a test starts
test test-all: export PYTHONDONTWRITEBYTECODE =

test: .venv/.installed-dev
	$(BIN)/parley fetch
	$(BIN)/pytest $(WORKERS)

# what takes minutes a test: real models in all forms, cold compiles, floods of requests; and all generated examples
test-all: .venv/.installed-dev
	$(BIN)/parley fetch
	$(BIN)/pytest $(WORKERS) -m "extended or hypothesis" --hypothesis-profile thorough

# real agent programs, which npm brings, in a network without anything else
test-agents: .venv/.installed-dev
	$(BIN)/python -m tests.test_agents.programs
	$(BIN)/pytest -m agents tests/test_agents

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py

# of servers that are running: make bench ARGS="--target parley=http://127.0.0.1:8000/v1 --target …"
bench: .venv/.installed-dev
	$(BIN)/parley bench $(ARGS)

image:
	docker build --tag parley .

# every package of the image with its hashes; what is there already keeps its version (LOCK_ARGS=--upgrade: the newest)
LOCK := requirements.lock

lock: .venv/.installed-tools
	$(BIN)/uv pip compile requirements.txt requirements-otel.txt requirements-s3.txt --universal --python-version 3.11 --generate-hashes --quiet \
		--custom-compile-command "make lock" --output-file $(LOCK) $(LOCK_ARGS)

# the software bill of materials of the image, in CycloneDX's format
sbom: .venv/.installed-tools
	mkdir -p build
	$(BIN)/cyclonedx-py requirements $(LOCK) --output-reproducible --output-file build/sbom.json

# known vulnerabilities of the packages of the image; it asks a public database
audit: .venv/.installed-tools
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement $(LOCK)

.venv/.installed: requirements.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements-otel.txt requirements-s3.txt requirements-bench.txt requirements-dev.txt
	$(BIN)/python -m pip install --requirement requirements-dev.txt
	touch $@

.venv/.installed-tools: .venv/.installed requirements-tools.txt
	$(BIN)/python -m pip install --requirement requirements-tools.txt
	touch $@
