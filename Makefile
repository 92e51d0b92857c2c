# Everything is set up in private folders: .venv here, the rest in the cache folder
# ($XDG_CACHE_HOME/sglang-commfix, ~/.cache/sglang-commfix by default).

PYTHON ?= python3
NOX := .venv/bin/nox

.PHONY: demo test test-servers fuzz bench clean

demo: ## Real sglang servers on this machine's CPU: wrong without the patches, right with them
	$(PYTHON) tests/rig/demo.py

test: $(NOX) ## Lint, types, the engine on every Python found here, packaging, real servers
	$(NOX) -s lint releases engine packaging servers

test-servers: $(NOX) ## Every server test, beyond what `make test` runs
	$(NOX) -s servers -- -m servers
	$(PYTHON) tools/server_table.py

fuzz: $(NOX) ## 100,000 mutants of real files, decided and spliced; FUZZ="--count 1000 --seed 1"
	$(NOX) -s fuzz -- $(FUZZ)

bench: $(NOX) ## Measure what a Python start costs, and a process that imports sglang
	$(NOX) -s bench

$(NOX):
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "nox>=2025.2.9"

clean:
	rm -rf .venv .nox dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
