"""Slurm arrays: what is submitted, and what a task runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lsdali.sweep.__main__ import main
from tests.harness import ROOT

SCRIPT = ROOT / "bash_scripts/slurm/sweep.sbatch"


def test_a_stage_is_an_array_that_waits_for_the_stages_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no sbatch: the commands are printed
    file = str(ROOT / "sweeps/lskd_cub.yaml")
    assert main([file, "epochs=30", "--only", "cub_students/*T=1.0*", "--slurm", str(SCRIPT), "--jobs", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lists = [f"runs/lskd/slurm/{stage}.txt" for stage in ("imagenet_teachers", "cub_teachers", "cub_students")]
    arrays = ["1-2%4", "1-2%4", "1-10%4"]
    waits = [
        "",
        " '--dependency=afterany:<job of imagenet_teachers>'",
        " '--dependency=afterany:<job of cub_teachers>'",
    ]
    assert lines == [
        f"$ sbatch --parsable --array={array}{wait} {SCRIPT} {path}"
        for array, wait, path in zip(arrays, waits, lists, strict=True)
    ]
    first = (tmp_path / lists[2]).read_text().splitlines()[0]
    assert first == (
        f"{sys.executable} -m lsdali.sweep {file} epochs=30 "
        "--only cub_students/ResNet-18_T=1.0_alpha=0.0_seed2021 --processes 1"
    )


def test_a_task_runs_its_own_line_as_a_shell_would_read_it(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("echo one\necho 'model={name: a b}' two\n")
    for task, said in ((2, "model={name: a b} two\n"), (3, "")):
        done = subprocess.run(
            ["bash", str(SCRIPT), "list.txt"],
            cwd=tmp_path,
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == said
        assert (done.returncode, "has no line 3" in done.stderr) == ((0, False) if said else (2, True))
