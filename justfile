# `just NAME`: the steps of .ci/run one at a time. https://just.systems; every line works without it, too.

# What there is
default:
    @just --list

# The environment that all else uses, and the hooks of .pre-commit-config.yaml
install:
    uv sync --extra dev
    uvx pre-commit install

# Rewrite the code as it must stand
format:
    uv run --no-sync ruff format .
    uv run --no-sync ruff check --fix .

# Format, lint, types, import contracts
lint:
    uv run --no-sync ruff format --check .
    uv run --no-sync ruff check .
    uv run --no-sync mypy
    uv run --no-sync lint-imports

# Quick tests, of all or of what is named: just test tests/methods
test *paths:
    OMP_NUM_THREADS=1 uv run --no-sync pytest {{paths}}

# Tests that train for longer
slow:
    OMP_NUM_THREADS=1 uv run --no-sync pytest -m "slow and not long"

# A short life under another Python: just light 3.13
light *arguments:
    .ci/light {{arguments}}

# The site of docs/, in build/site/html
site:
    uv run --no-sync python .ci/site.py

# Everything, as CI does
check:
    .ci/run
