# Needs Python 3.11 and make. Settings come from the environment or .env; PORT=… and HOST=… are short for two of them.
PYTHON := $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN := .venv/bin

.PHONY: run test test-all test-agents check bench image

run: .venv/.installed
	$(BIN)/parley fetch
	$(BIN)/parley migrate upgrade
	$(BIN)/parley serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

# in as many workers as there are processors, four at most
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

test: .venv/.installed-dev
	$(BIN)/parley fetch
	$(BIN)/pytest $(WORKERS)

# what takes minutes a test: real models in all forms, cold compiles, floods of requests
test-all: .venv/.installed-dev
	$(BIN)/parley fetch
	$(BIN)/pytest $(WORKERS) -m extended

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

.venv/.installed: requirements.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements-bench.txt requirements-dev.txt
	$(BIN)/python -m pip install --requirement requirements-dev.txt
	touch $@
