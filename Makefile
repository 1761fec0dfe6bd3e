# Two commands matter: `make run` supervises units/, `make test` passes every test. Both set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready

.PHONY: run fleet test test-daemons test-systemd test-vm check lint format bench soak soak-real soak-fleet soak-simulated mutate clean

# Whoever only wants to see it run does not wait for the linters.
$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(READY): $(RUNS)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(RUNS)  ## supervise units/ in the foreground (Ctrl-C stops everything in order)
	exec $(BIN)/supervisord-py run units

fleet: $(RUNS)  ## twelve agents that work together and fail in every way, in run/fleet (units/fleet/README.md)
	exec $(BIN)/python units/fleet/run.py run/fleet

test: $(READY)  ## every test
	$(BIN)/pytest -n 2 --dist loadgroup

test-daemons: $(READY)  ## real daemons (redis, nginx, postgresql, ...) in a container root: as root, makes the root at the first time
	tests/daemons/enter -v tests/daemons

check: $(READY) lint  ## about a minute: format, lint, types, layers, tidy, unit and property tests, 200 seeds
	$(BIN)/pytest -q -n 2 tests/unit tests/property tests/tidy
	$(BIN)/python -m supervisord_py.testing.world --seeds 200

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-systemd: $(READY)  ## under a real systemd in a container: root, mmdebstrap and systemd-container needed; a few minutes
	$(BIN)/pytest tests/systemd/check_service.py

test-vm: $(READY)  ## limits by cgroup v2 with all controllers, in a virtual machine: as root, qemu-system-x86 and others needed; three minutes
	$(BIN)/python -m tests.vm

bench: $(READY)  ## beside supervisor, circus, pm2 and a C loop; writes docs/performance.md and docs/crash-loop.md
	$(BIN)/python bench/run.py
	$(BIN)/python bench/crashloop.py

soak: soak-real soak-fleet soak-simulated  ## two hours under real faults, then one of simulated ones (docs/testing.md)

soak-real: $(READY)  ## a real supervisor, stopped and killed for an hour ($$SUPERVISORD_PY_SOAK_SEC); no restart may be false
	$(BIN)/python -m tests.soak

soak-fleet: $(READY)  ## the fleet of units/fleet for an hour ($$SUPERVISORD_PY_SOAK_SEC); each end has a cause, no message is lost
	$(BIN)/python -m tests.soak.fleet

soak-simulated: $(READY)  ## simulated worlds on all cores for HOURS=N; stops at the first violation
	$(BIN)/python -m supervisord_py.testing.soak --hours $(or $(HOURS),1)

mutate: $(READY)  ## one slip at a time in core/: prints what the fast tests do not notice (SAMPLE=N for a part)
	$(BIN)/python tests/sim/mutation_run.py $(if $(SAMPLE),--sample $(SAMPLE))

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
