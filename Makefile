# Two commands on a fresh machine (Python 3.11 or later, make, a C compiler): `make demo` and `make test`.
# Both fill .venv by themselves; it needs no network once it is up to date.

PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin
ARGS ?=
ONLY ?=
# Tests in so many processes side by side: as many as there are cores, two at least (federations mostly wait), eight at most.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); test $$cores -gt 2 || cores=2; test $$cores -lt 8 || cores=8; echo $$cores)
# One patient fits in one core: several hospitals share this machine, so none of them takes all threads.
export OMP_NUM_THREADS ?= 1
# Every command is a process of its own: compiled once, they start in half the time.
unexport PYTHONDONTWRITEBYTECODE
SELDOM := /tests?/|/nvidia/
export TOKENIZERS_PARALLELISM := false
# No telemetry, no update check, no installs while running.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-hostile test-thorough test-numerics test-faults check check-types check-duplicates check-style check-imports \
        bench docs clean constraints format fhir-server synthea test-servers

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or later, or set PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import importlib.metadata as m; assert m.version("uv") == "$(UV_VERSION)"' 2>/dev/null || $(BIN)/pip install --quiet "uv==$(UV_VERSION)"
	@echo "Filling .venv with what is pinned in constraints.txt: once, one to ten minutes, some 6 GB of disk (most of it"
	@echo "torch with what it needs on a GPU). Nothing is installed outside .venv and the caches of pip and uv."
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); test "$$free" -ge 8 || \
		echo "Only $$free GiB are free here: this may not be enough."
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all]' --group dev
	@echo "Compiling what was installed, so that every process starts faster."
	@$(BIN)/python -m compileall -q -j 2 -x '$(SELDOM)' .venv/lib vht_federate connector strategies synth deploy >/dev/null || true
	@touch $@

demo: .venv/.ready ## Four hospitals, end to end, on this machine (ARGS="--keep --out DIR")
	$(BIN)/vht demo $(ARGS)

test: .venv/.ready ## All tests but the attacks, the fault runs, and those that need larger servers
	$(BIN)/pytest -n $(WORKERS) -m "not faults and not servers and not hostile" $(ARGS)

test-hostile: .venv/.ready ## Every attack of docs/explanation/security.md, and that each works without its wall; a table
	$(BIN)/pytest -n $(WORKERS) -m hostile $(ARGS)

test-thorough: .venv/.ready ## Properties with many more examples, new ones each time (an hour)
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -n $(WORKERS) -m "not faults and not servers and not hostile and not federation" $(ARGS)

test-faults: .venv/.ready ## Kill processes, revoke permits, fill disks, in the middle of real runs; whole demos; a FHIR server
	$(BIN)/pytest -n $(WORKERS) -m "faults and not servers" $(ARGS)

test-numerics: .venv/.ready ## The privacy tests under each of torch's instruction sets, and without oneDNN (many minutes)
	PYTHONPATH=tests $(BIN)/python -m kit.rounding_settings $(ARGS)

check: .venv/.ready ## Lint, types, import floors, duplicate code
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check-types check-duplicates check-style check-imports

check-types: .venv/.ready
	$(BIN)/mypy

check-duplicates: .venv/.ready
	$(BIN)/pylint vht_federate connector strategies synth deploy

check-style: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-imports: .venv/.ready
	$(BIN)/lint-imports

bench: .venv/.ready ## Benchmarks as ratios (ONLY=name for one)
	$(BIN)/python -m benchmarks $(ONLY)

docs: .venv/.ready ## Write docs/reference from the code, and check every link and command in docs
	$(BIN)/python -m docs.build

test-servers: .venv/.ready ## Against real FHIR servers and larger cohorts (JDK 17, Maven; minutes)
	$(BIN)/pytest -m servers $(ARGS)

FHIR_PORT ?= 18090
HAPI := tests/servers/hapi-fhir
SYNTHEA := tests/servers/synthea
PATIENTS ?= 100
JAVA := command -v java >/dev/null && command -v mvn >/dev/null || \
	{ echo "Java or Maven is missing: install a JDK 17 and Maven 3.8 (Debian: openjdk-17-jdk-headless, maven)"; exit 1; }

$(HAPI)/target/fhir-server-1.jar: $(HAPI)/pom.xml $(wildcard $(HAPI)/src/main/java/fhirserver/*.java)
	@$(JAVA)
	cd $(HAPI) && mvn -q -B package
	@touch $@

$(SYNTHEA)/target/.ready: $(SYNTHEA)/pom.xml
	@$(JAVA)
	cd $(SYNTHEA) && mvn -q -B package
	@touch $@

out/synthea:
	@$(MAKE) --no-print-directory $(SYNTHEA)/target/.ready
	@echo "making $(PATIENTS) patients: one to three minutes"
	@PATIENTS=$(PATIENTS) $(SYNTHEA)/generate.sh $@

synthea: out/synthea ## A cohort of synthetic patients in out/synthea/fhir (JDK 17, Maven; PATIENTS=100)
	@cd out/synthea/fhir && wc -l *.ndjson

fhir-server: $(HAPI)/target/fhir-server-1.jar ## A real FHIR R4 server to try against (HAPI; JDK 17, Maven; FHIR_PORT=18090)
	cd $(HAPI) && FHIR_PORT=$(FHIR_PORT) exec java -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp 'target/fhir-server-1.jar:target/lib/*' fhirserver.Main

format: .venv/.ready ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

constraints: .venv/.ready ## Resolve constraints.txt anew
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --quiet --no-annotate --no-header --no-emit-index-url -o constraints.new --python $(BIN)/python
	@{ echo '# Every package, transitive included, at the version the tests ran with. Written by `make constraints`.'; cat constraints.new; } > constraints.txt; rm constraints.new

clean: ## Remove the environment and everything generated
	rm -rf .venv build dist out demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
