# Works on a machine with Python 3.11 or newer (or uv), make and git: every target first installs what it needs.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo dev test lint types bench

help:
	@echo "make demo    the whole pipeline on the demo's pictures, texts and video, with real models"
	@echo "make dev     the Dagster UI on the home folder (FOUNDRY_HOME, or demo/home)"
	@echo "make test    lint, types and tests"
	@echo "make bench   the benchmarks"

demo: $(INSTALLED)
	@$(BIN)/python -m demo.run demo

dev: $(INSTALLED)
	@$(BIN)/python -m demo.run dev $(ARGS)

# All three are told, whatever the first says; the tests come last, two files at once: many of them wait.
test: $(INSTALLED)
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory types || status=1; \
	$(BIN)/python -m pytest -n 2 --dist loadfile || status=1; \
	exit $$status

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks $(ARGS)

$(INSTALLED): pyproject.toml deploy/install.sh
	@deploy/install.sh
