#!/usr/bin/env bash
# Lint, types and tests, in the active virtual environment or in ./.venv. Arguments go to pytest, which has one process a
# core; -n 0 makes it one in all.
set -euo pipefail
source "$(dirname "$0")/env.sh" test
ruff check .
ruff format --check .
mypy
python -m pytest --numprocesses auto --dist worksteal "$@"
