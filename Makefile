# The two commands of a fresh machine are `make quickstart` and `make test`. Both make .venv once
# and use it again; only python3 >= 3.11 with pip is needed. Another interpreter:
#   make quickstart PYTHON=python3.12
# Plain make and plain sh: no GNU extensions.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
RUNS = runs

.PHONY: help quickstart test test-slow check bench docs mlflow-ui clean distclean faults mlflow-server

help:
	@echo "make quickstart   install, run LIMPQ end to end on real digits, print the result table"
	@echo "make test         install the test extra, run all checks and tests"
	@echo "make test-slow    the tests that make test leaves out, minutes each"
	@echo "make faults       kill, damage and starve on purpose; writes the table of docs/reliability.md"
	@echo "make check        ruff, formatting, mypy and import rules"
	@echo "make bench        time the solver and the quantizer"
	@echo "make docs         write the generated parts of the documents again"
	@echo "make mlflow-ui    open MLflow on the runs in $(RUNS)/"
	@echo "make mlflow-server   a tracking server for this machine; STORE= and PORT= choose"
	@echo "make clean        remove caches; distclean also $(VENV). Runs are never removed"

quickstart: $(VENV)/installed
	@echo "== quickstart: mpq run configs/experiments/quickstart.yaml"
	@began=$$(date +%s); \
	$(BIN)/mpq run configs/experiments/quickstart.yaml; code=$$?; \
	echo "== quickstart: the run took $$(($$(date +%s) - began)) s"; \
	echo "== for mpq and mlflow in this shell: . $(BIN)/activate (or: make mlflow-ui)"; \
	exit $$code

test: check
	@echo "== test: pytest"
	@began=$$(date +%s); \
	$(BIN)/python -m pytest; code=$$?; \
	echo "== test: pytest took $$(($$(date +%s) - began)) s"; \
	exit $$code

test-slow: $(VENV)/installed-test
	@$(BIN)/python -m pytest -m slow

check: $(VENV)/installed-test
	@began=$$(date +%s); \
	for tool in "ruff check ." "ruff format --check ." "mypy" "lint-imports"; do \
		echo "== check: $$tool"; \
		$(BIN)/$$tool || exit 1; \
	done; \
	echo "== check: took $$(($$(date +%s) - began)) s"

# Every file in benchmarks/ that can be run; the others are what they share.
bench: $(VENV)/installed
	@for file in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== bench: $$file"; \
		began=$$(date +%s); \
		$(BIN)/python $$file || exit 1; \
		echo "== bench: $$file took $$(($$(date +%s) - began)) s"; \
	done

docs: $(VENV)/installed
	@$(BIN)/python docs/generate.py

mlflow-ui: $(VENV)/installed
	$(BIN)/mlflow ui --backend-store-uri "sqlite:///$$(pwd)/$(RUNS)/mlflow.db"

# A tracking server with an artifact proxy: clients need no rights on the store or the artifacts.
# Another database: make mlflow-server STORE=postgresql+psycopg://user@host/mlflow (extra postgres).
STORE = sqlite:///$$(pwd)/$(RUNS)/mlflow-server.db
PORT = 5000
mlflow-server: $(VENV)/installed
	@mkdir -p $(RUNS) && chmod 700 $(RUNS)
	@echo "== mlflow-server: http://127.0.0.1:$(PORT); set tracking.uri to it"
	@umask 077; MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
	$(BIN)/mlflow server --backend-store-uri "$(STORE)" --serve-artifacts \
		--artifacts-destination "$$(pwd)/$(RUNS)/mlflow-artifacts" \
		--host 127.0.0.1 --port $(PORT) --allowed-hosts "127.0.0.1:$(PORT),localhost:$(PORT)"

# One file at a time, so that what was counted before a failure is kept; Ray once at a time.
FAULTS = resume_identical broken_files numbers_and_names malformed mlflow_outages \
	planted_secrets workers_killed driver_faults sweep_faults nodes doctor_cluster
faults: $(VENV)/installed-test
	@began=$$(date +%s); code=0; counts=$$(mktemp -d); \
	for name in $(FAULTS); do \
		echo "== faults: $$name"; \
		MPQ_FAULTS_OUT=$$counts/$$name.json OMP_NUM_THREADS=1 \
			$(BIN)/python -m pytest -q -m "slow or not slow" tests/faults/test_$$name.py || code=1; \
	done; \
	$(BIN)/python tests/faults/write_table.py $$counts/*.json || code=1; \
	echo "== faults: took $$(($$(date +%s) - began)) s"; \
	exit $$code

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find orchestrator trainers solvers tests benchmarks docs -name __pycache__ -type d -prune \
		-exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) mpq_orchestrator.egg-info

# The code is installed in place, so only pyproject.toml makes an installation stale.
$(VENV)/installed: pyproject.toml
	@$(MAKE_VENV)
	@$(INSTALL) .
	@touch $@

$(VENV)/installed-test: pyproject.toml
	@$(MAKE_VENV)
	@$(INSTALL) '.[test]'
	@touch $(VENV)/installed $@

# Says what is wrong before pip does, and replaces a .venv that an interrupted start left behind.
MAKE_VENV = \
	if ! command -v $(PYTHON) >/dev/null 2>&1; then \
		echo "no command $(PYTHON); install Python >= 3.11 or give one: make PYTHON=..." >&2; \
		exit 2; \
	fi; \
	new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -x $(BIN)/python ] && $(BIN)/python -c "$$new" && $(BIN)/python -m pip --version \
		>/dev/null 2>&1; then \
		echo "== venv: using $(VENV), $$($(BIN)/python --version)"; \
	elif ! $(PYTHON) -c "$$new"; then \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.11 or newer is needed;" \
			"give another: make PYTHON=python3.12 ..." >&2; \
		exit 2; \
	else \
		echo "== venv: making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu:" \
				"apt install python3-venv" >&2; \
			exit 2; \
		}; \
	fi

INSTALL = \
	install_in_place() { \
		echo "== install: pip install -e '$$1' (torch's build with GPU support takes 6 GB)"; \
		began=$$(date +%s); \
		$(BIN)/pip install -e "$$1" || exit 1; \
		echo "== install: took $$(($$(date +%s) - began)) s"; \
	}; install_in_place
