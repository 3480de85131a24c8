# Sourced by the other scripts: an environment with lsdali installed. The active virtual environment is used, else ./.venv.
# Usage: source bash_scripts/env.sh [extras], for example: source bash_scripts/env.sh test
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${LSDALI_IMAGE:-}" ]; then return; fi # the Dockerfile has installed it
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi
# A fresh environment takes 7.0 GiB (torch, CUDA's libraries, DALI), and pip keeps the wheels, 3.0 GiB, in its temporary
# folder until all are unpacked; both may lie on one file system.
if ! python -c 'from importlib.metadata import version; version("torch"), version("nvidia-dali-cuda120")' 2>/dev/null; then
  df -Pk "$VIRTUAL_ENV" "${TMPDIR:-/tmp}" | awk '
    NR > 1 { need[$NF] += NR == 2 ? 7.5 : 3.5; free[$NF] = $4 / 1048576 }
    END {
      for (place in need) if (free[place] < need[place]) {
        printf "error: a fresh environment needs %.1f GiB on %s, where %.1f GiB are free: make room there, " \
          "or set TMPDIR to a folder with 3.5 GiB\n", need[place], place, free[place]
        exit 1
      }
    }' >&2
fi
# Without its cache pip leaves nothing behind; the cache would keep a second copy of each wheel.
python -m pip install --quiet --no-cache-dir --disable-pip-version-check --editable ".${1:+[$1]}"
