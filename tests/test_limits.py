"""CPU cores that control groups and affinity leave, and open files."""

import os
import resource
from pathlib import Path

import pytest

from lsdali import limits
from lsdali.errors import REFUSED
from lsdali.train import main


def test_quotas_of_both_versions_and_of_outer_groups(tmp_path: Path) -> None:
    """No limit and no mount give no number; of a path that is not mounted, the mounted part counts."""
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "job/cpu.max").write_text("250000 100000\n")
    (tmp_path / "job/step/cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/free").mkdir()
    (tmp_path / "cpu/free/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/free/cpu.cfs_period_us").write_text("100000\n")
    own = "9:cpu,cpuacct:/free\n8:memory:/m\n0::/job/step/not/mounted\n"
    assert list(limits.cpu_quotas(tmp_path, own)) == [0.5, 2.5]
    assert list(limits.cpu_quotas(tmp_path / "nothing", own)) == []


@pytest.mark.parametrize(
    ("quota", "ranks", "cores"), [("max", 4, 4), ("600000", 4, 1), ("600000", 2, 3), ("50000", 1, 1)]
)
def test_cores_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, ranks: int, cores: int) -> None:
    """Sixteen cores by affinity, and the quota where it is less."""
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert limits.cpu_cores(ranks) == cores


def test_too_few_open_files_are_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for files in (64, 4096, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        limits.refuse_few_files()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (63, 4096))
    assert main(["recipes/digits/ce.yaml"]) == REFUSED
    sentence = "error: this process may open 63 files, and a run needs 64: ulimit -n 4096\n"
    assert capsys.readouterr().err == sentence
