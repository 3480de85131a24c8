# Sourced by the other scripts: an environment with lsdali installed. The active virtual environment is used, else ./.venv.
# Usage: source bash_scripts/env.sh [extras], for example: source bash_scripts/env.sh test
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi
python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
