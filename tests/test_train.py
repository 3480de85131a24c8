"""The command line from end to end: real files, real DALI, real torchrun, real kills."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml

from lsdali import dist
from lsdali.build import build
from lsdali.events import Events
from lsdali.recipe import load
from tests.harness import (
    ROOT,
    TORCHRUN,
    descendants,
    environment,
    events,
    make_images,
    summary,
    tiny,
    train,
    train_and_kill,
    train_by_torchrun,
)
from tests.ranks import OnRanks

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images", train=24)


@pytest.fixture(scope="module")
def recipe(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 steps an epoch, 3 epochs, on 120 images; batch 12 is for 1, 2, 3 and 4 ranks."""
    base = tmp_path_factory.mktemp("recipes")
    tree = tiny({"name": "zls", "weight": 0.5}, images, base / "run", batch=12, epochs=3, ema={"decay": 0.9})
    path = base / "tiny_zls.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize(
    ("ranks", "changes"), [(0, []), (2, ["batch_schedule=[{epoch: 1, batch: 8}, {epoch: 2, batch: 24}]"]), (3, [])]
)
def test_a_killed_run_ends_where_the_unbroken_one_does(
    recipe: Path, tmp_path: Path, ranks: int, changes: list[str]
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(ranks, str(recipe), f"run_dir={unbroken}", *changes)
    again = (str(recipe), f"run_dir={broken}", "save.every_steps=4", *changes)
    train_and_kill(ranks, "step-0000000016.pt", *again)
    assert not (broken / "summary.json").exists()
    train(ranks, *again)
    begun = events(broken, "begun")
    assert begun[0]["step"] == 0
    assert begun[1]["step"] >= 16
    assert begun[1]["step"] % 10, "the run was to be killed in mid-epoch"
    first, second = summary(unbroken), summary(broken)
    assert first["steps"] == (30 if not changes else 10 + 15 + 5)
    assert first["digest"] == second["digest"]
    assert first["last"] == second["last"]
    assert first["ema"] == second["ema"]


def test_a_run_goes_on_with_another_number_of_ranks(recipe: Path, tmp_path: Path) -> None:
    again = (str(recipe), f"run_dir={tmp_path}", "save.every_steps=4")
    train_and_kill(2, "step-0000000016.pt", *again)
    done = train(3, *again)
    assert "resumes at step" in done.stdout
    assert [b["world"] for b in events(tmp_path, "begun")] == [2, 3]
    assert summary(tmp_path)["steps"] == 30
    assert max(line["step"] for line in events(tmp_path, "trained")) == 30


def test_torchrun_restarts_a_run_whose_rank_was_killed(recipe: Path, tmp_path: Path) -> None:
    """In place, by --max-restarts: the surviving rank is stopped, both start again and resume."""
    arguments = [str(recipe), f"run_dir={tmp_path}", "save.every_steps=4"]
    command = [*TORCHRUN, "--nproc_per_node", "2", "--max-restarts", "1", "-m", "lsdali.train", *arguments]
    agent = subprocess.Popen(command, cwd=ROOT, env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / "checkpoints/step-0000000008.pt").exists():
        assert agent.poll() is None
        time.sleep(0.005)
    os.kill(descendants(agent.pid)[-1], signal.SIGKILL)
    output = agent.communicate(timeout=120)[0].decode()
    assert agent.returncode == 0, output
    assert [b["step"] >= 8 for b in events(tmp_path, "begun")] == [False, True], output
    assert summary(tmp_path)["steps"] == 30


def test_a_finished_run_says_so_and_another_recipe_is_refused(recipe: Path, tmp_path: Path) -> None:
    train(0, str(recipe), f"run_dir={tmp_path}", "epochs=1")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")}
    done = train(0, str(recipe), f"run_dir={tmp_path}", "epochs=1", "save.keep=5")
    assert f"this run is finished: 1 epochs; its figures are in {tmp_path / 'summary.json'}" in done.stdout
    other = train(2, str(recipe), f"run_dir={tmp_path}", "method.weight=0.25", check=False)
    sentence = f"error: {tmp_path} holds a run of another recipe (epochs: 1 -> 3; method.weight: 0.5 -> 0.25)"
    assert other.stderr.count(sentence) == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")} == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(recipe: Path, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    train(0, str(recipe), f"run_dir={whole}", "epochs=2")
    train_and_kill(0, "step-0000000012.pt", str(recipe), f"run_dir={damaged}", "epochs=2", "save.every_steps=3")
    newest = sorted((damaged / "checkpoints").glob("step-*.pt"))[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    done = train(0, str(recipe), f"run_dir={damaged}", "epochs=2", "save.every_steps=3")
    assert (
        f"checkpoint {newest} is not whole: cut off or overwritten; it is set aside as {newest.name}.bad" in done.stdout
    )
    assert "resumes at step" in done.stdout
    assert summary(whole)["digest"] == summary(damaged)["digest"]


def test_changed_training_data_are_refused(images: Path, recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    again = (str(recipe), f"run_dir={tmp_path / 'run'}", f"data.root={copy}", "save.every_steps=4")
    train_and_kill(0, "step-0000000004.pt", *again)
    shutil.copy(copy / "train/class0/0.png", copy / "train/class0/new.png")
    done = train(0, *again, check=False)
    assert "error: the training files or their labels have changed since" in done.stderr
    (copy / "train/class0/new.png").unlink()
    train(0, *again)


def test_another_teacher_is_refused_in_the_middle_of_a_run(recipe: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(0, str(recipe), f"run_dir={tmp_path}/teacher{seed}", f"seed={seed}", "epochs=1", "ema=null")
    tree = yaml.safe_load(recipe.read_text())
    teacher = tmp_path / "teacher.pt"
    tree["method"] = {"name": "kd", "teacher": {"source": "checkpoint", "path": str(teacher)}}
    student = tmp_path / "student.yaml"
    student.write_text(yaml.safe_dump(tree))
    again = (str(student), f"run_dir={tmp_path / 'run'}", "save.every_steps=4")
    shutil.copy(tmp_path / "teacher0/checkpoints/best.pt", teacher)
    train_and_kill(0, "step-0000000004.pt", *again)
    shutil.copy(tmp_path / "teacher1/checkpoints/best.pt", teacher)
    done = train(0, *again, check=False)
    assert "error: the teacher's weights have changed since" in done.stderr


def test_the_run_folder(recipe: Path, tmp_path: Path) -> None:
    done = train(2, str(recipe), f"run_dir={tmp_path}", "seed=3", "log.every_steps=5", "save.every_steps=2")
    assert done.stdout.count("finished: top-1") == 1, "rank 0 alone talks"
    content = summary(tmp_path)
    for part in (content["last"], content["best"], content["ema"]["last"]):
        assert {"top1", "top5", "nll", "ece", "aurc", "epoch"} <= part.keys()
    assert content["last"]["epoch"] == 3
    assert content["best"]["top1"] >= content["last"]["top1"]
    assert len(content["digest"]) == 64
    assert content["images_per_second"] > 0
    resolved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (resolved["seed"], resolved["optimizer"]["momentum"]) == (3, 0.9)
    steps = [line["step"] for line in events(tmp_path, "trained")]
    assert steps == [5, 10, 15, 20, 25, 30]
    assert {"ce", "zipf"} <= events(tmp_path, "trained")[0]["terms"].keys()
    assert all(0 <= line["data_wait"] <= 1 for line in events(tmp_path, "trained"))
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best.pt", "step-0000000028.pt", "step-0000000030.pt"]


def write_metrics(recipe: Path, folder: Path, batch: int) -> None:
    trainer = build(load(recipe, [f"evaluate.batch={batch}"]), folder, torch.device("cpu"), None, Events([]))
    metrics = trainer.evaluate()
    if dist.is_main():
        (folder / "metrics.json").write_text(json.dumps({name: f"{value:.6f}" for name, value in metrics.items()}))


def test_metrics_are_equal_on_any_number_of_ranks(recipe: Path, tmp_path: Path, on_ranks: OnRanks) -> None:
    found = []
    for ranks, batch in ((1, 64), (1, 7), (2, 64), (3, 64), (3, 2)):
        on_ranks(ranks, write_metrics, recipe, tmp_path, batch)
        found.append(json.loads((tmp_path / "metrics.json").read_text()))
    assert found[0]["n"] == "25.000000"
    assert all(other == found[0] for other in found), found


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line with an error of a run that has failed without a traceback of ours."""
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert str(ROOT / "lsdali") not in done.stderr
    return line


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.root=/nowhere/at/all"], "/nowhere/at/all"),
        (["model.classes=3"], "has 5 classes and the model only 3; leave the key out or give at least 5"),
        (["precision=fp16"], "precision: fp16 needs a CUDA device and this is the cpu; use fp32 or bf16"),
        (["optimizer.implementation=apex"], "PyPI"),
        (["data.val_dir=train"], "the same"),
    ],
)
def test_bad_input_is_one_sentence_from_rank_0(
    recipe: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    assert sentence in one_sentence(train(2, str(recipe), f"run_dir={tmp_path}", *overrides, check=False))
    assert not (tmp_path / "checkpoints").exists()


def test_torchrun_adds_nothing_to_the_sentence(recipe: Path, tmp_path: Path) -> None:
    done = train_by_torchrun(2, str(recipe), f"run_dir={tmp_path}", "batch=13")
    assert "batch 13 cannot be shared among 2 ranks; use 12 or 14" in one_sentence(done)
    assert not (tmp_path / "checkpoints").exists()


def test_two_runs_do_not_share_a_folder(recipe: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train(0, str(recipe), f"run_dir={tmp_path}", check=False)
    assert done.stderr == f"error: another run is writing to {tmp_path}: wait for it, or give another run_dir\n"
    assert done.returncode == 2


def test_bad_training_files_are_named_and_training_goes_on(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    bad = {"class0/0.png": b"", "class1/1.png": b"<html>404</html>", "class2/2.png": None}
    for name, content in bad.items():
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(yaml.safe_dump(tiny({"name": "ce"}, root, tmp_path / "run", epochs=1)))
    refused = train(2, str(recipe), f"run_dir={tmp_path}/first", check=False)
    assert refused.stderr.count("error: 3 training files are bad, more than") == 1
    done = train(2, str(recipe), "data.max_bad_files=3")
    for name in bad:
        assert done.stdout.count(f"bad file: {root / 'train' / name} (") == 1
    assert summary(tmp_path / "run")["steps"] == 5
    (root / "val/class3/1.png").write_bytes(b"")
    os.utime(root / "val/class3")
    done = train(2, str(recipe), "data.max_bad_files=3", f"run_dir={tmp_path}/second", check=False)
    assert f"error: validation data has bad files, 1 in all: {root / 'val/class3/1.png'} (empty)" in done.stderr
