# Everything here makes .venv itself when it is missing; Python 3.11 or newer and make are all it needs.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# Two pytest workers on two cores: one thread each, so that they do not fight over them. Bytecode is written, as tests
# start hundreds of processes.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test test-dev test-thorough coverage fuzz stress errors spec review faults mutants conformance matrix bench lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is made last, so that an installation which broke off starts again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantspec needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

.venv/installed-mutants: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,mutants]'
	@touch $@

run: .venv/installed ## tutorial: train, quantize, measure, compare with torch
	@$(BIN)/quantspec run $(ARGS)

test: .venv/installed ## run the suite
	$(TEST) $(ARGS)

test-dev: .venv/installed ## run the suite with fewer random examples
	HYPOTHESIS_PROFILE=dev $(TEST) $(ARGS)

test-thorough: .venv/installed-mutants ## 20 times the examples; mutants of changes: SINCE=HEAD~1
	HYPOTHESIS_PROFILE=thorough $(TEST) $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m mutants --workers $(WORKERS) --since $(or $(SINCE),HEAD~1)

fuzz: .venv/installed ## load damaged and forged files: SECONDS=3600
	@PYTHONPATH=tests:tests/harness $(BIN)/python -W ignore -m fuzz.fuzz --seconds $(or $(SECONDS),3600) --jobs $(WORKERS) $(ARGS)

stress: .venv/installed ## threads, kills while saving, interrupts, exits, forks
	@PYTHONPATH=tests $(BIN)/python -W ignore -m stress.stress $(ARGS)

errors: .venv/installed ## hostile inputs; writes spec/errors.md
	@OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/harness $(BIN)/python -W ignore -m errors.page

spec: .venv/installed ## run the suite, account for clauses; writes spec/coverage.md
	@status=0; $(TEST) -q --spec-record out/spec.json $(ARGS) || status=$$?; $(BIN)/python tests/harness/coverage_page.py out/spec.json && exit $$status

# Machine code is written by Python only where it is not stored yet.
coverage: .venv/peers ## find lines that no test reaches; writes out/unreached.md
	@rm -rf out/coverage out/kernels && mkdir -p out && mkdir -m 700 out/coverage out/kernels
	@status=0; export QUANTSPEC_KERNELS=$(CURDIR)/out/kernels; OMP_NUM_THREADS=1 $(BIN)/python -m coverage run \
		-m pytest -n $(WORKERS) --dist worksteal -q $(ARGS) || status=$$?; \
		PYTHONPATH=tests/harness $(BIN)/python tests/harness/unreached.py out/coverage && exit $$status

review: .venv/installed ## record that a clause's tests were read: CLAUSE=AFF-TIES
	@$(BIN)/python tests/harness/review.py $(foreach c,$(CLAUSE),'$(c)') $(if $(EXAMPLES),--examples $(EXAMPLES)) $(if $(WITHDRAW),--withdraw '$(WITHDRAW)')

faults: .venv/installed ## wrong implementations, which the suite must reject
	@PYTHONPATH=tests:tests/harness $(BIN)/python -m faults.kill $(ARGS)

# The peers are extras, which nothing else needs.
.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,peers]'
	@touch $@

conformance: .venv/peers ## test all backends; writes spec/results and its pages
	@OMP_NUM_THREADS=1 $(BIN)/quantspec conformance --write spec --html out/conformance.html $(ARGS)

matrix: .venv/installed ## write the pages of conformance from recorded results
	@$(BIN)/quantspec conformance --recorded --write spec --html out/conformance.html

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
	@touch $@

bench: .venv/bench ## speed and memory beside others': ROWS="lstm/*" THREADS="1"
	@OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/harness $(BIN)/python -m pytest -p bench.plugin -p no:cacheprovider -o filterwarnings=ignore -o timeout=0 --benchmark-quiet -q \
		--bench-threads '$(or $(THREADS),1 2)' $(if $(ROWS),--bench-rows '$(ROWS)') $(if $(JSON),--bench-json '$(JSON)') $(ARGS) \
		tests/bench/bench_networks.py tests/bench/bench_other.py

mutants: .venv/installed-mutants ## small changes, to be noticed; sampled: ARGS="--sample 100"
	@PYTHONPATH=tests $(BIN)/python -m mutants --workers $(WORKERS) $(ARGS)

lint: .venv/installed ## check style, imports between packages, and types
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	@touch $@

docs: .venv/docs ## build the site in out/site
	@$(BIN)/python spec/site/build.py

clean: ## remove what the other targets made
	rm -rf .venv build dist out .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
