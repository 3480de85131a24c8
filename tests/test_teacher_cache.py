"""A teacher's answers from a cache: the same training to the bit, made anywhere, and refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lsdali.answers import Making
from lsdali.cache import main
from lsdali.errors import UserError
from lsdali.models.answer_rows import RowFormat, divergence
from lsdali.models.digest import weights_digest
from lsdali.models.teacher_cache import CachedTeacher, open_folder
from lsdali.testing.small import make_images, tiny
from tests.methods.trainers import CONFIGS, named, trainer_for, with_teacher
from tests.ranks import OnRanks

BATCH = 12  # 40 images: the last batch of all samples is not full
READ_MORE = [c for c in CONFIGS if c.get("means") == "validation" or "memory" in c or "features" in c]
TAUGHT = [c for c in CONFIGS if "teacher" in c and c not in READ_MORE]


def recipe_file(base: Path, method: Any, place: Path, **others: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny(method, base / "images", place / "run", batch=BATCH), **others}))
    return path


def kd(base: Path, cache: Path | None = None, **more: Any) -> dict[str, Any]:
    teacher = {"source": "checkpoint", "path": str(base / "teacher/checkpoints/best.pt"), **more}
    return {"name": "kd", "teacher": teacher if cache is None else {**teacher, "cache": str(cache)}}


def make(base: Path, cache: Path, *options: str, method: Any = None, **others: Any) -> int:
    path = recipe_file(base, method or kd(base, cache), base / f"{cache.name}_recipe", **others)
    return main([str(path), *options])


@pytest.fixture(scope="module")
def exact(folder: Path) -> Path:
    """All logits in 32 bits of two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(folder / "cache"))
        assert make(folder, folder / "exact", "--top", "all", "--values", "fp32") == 0
    return folder / "exact"


# ---- rows


@pytest.mark.parametrize("values", ["fp32", "fp16"])
@pytest.mark.parametrize(("classes", "keep"), [(7, 7), (7, 3), (7, 1), (7, 6), (70_000, 5)])
def test_rows_hold_what_they_say(values: Any, classes: int, keep: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(scale=4, size=(9, classes)).astype(np.float32))
    form = RowFormat(classes, keep, values)
    rows = form.pack(logits)
    back = form.unpack(rows, torch.device("cpu")).numpy()
    width = {"fp32": 4, "fp16": 2}[values]
    whole = keep == classes
    place = 0 if whole else 2 if classes < 65_536 else 4
    assert rows.dtype.itemsize == keep * (width + place) + (0 if whole else 4) + (4 if values == "fp16" else 0)
    for x, y in zip(logits.numpy().astype(float), back.astype(float), strict=True):
        order = np.argsort(-x)
        top, others = order[:keep], order[keep:]
        if values == "fp32":
            assert (x[top] == y[top]).all()
        else:
            assert (np.abs(x[top] - y[top]) <= np.abs(x[top] - x.max()) * 2**-11 + 1e-6).all()
        if len(others):
            np.testing.assert_allclose(np.exp(y[others]).sum(), np.exp(x[others]).sum(), rtol=1e-4)
            assert len(set(y[others])) == 1


def test_what_is_lost_is_the_divergence_of_the_softmax() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4, 6))
    p, q = (np.exp(x / 3) / np.exp(x / 3).sum(1, keepdims=True) for x in (a, b))
    expected = (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(divergence(torch.tensor(a), torch.tensor(b), 3.0), expected, rtol=1e-10)


# ---- training


@pytest.mark.parametrize("config", TAUGHT, ids=named)
def test_training_from_all_logits_is_that_with_the_teacher_to_the_bit(
    config: Any, folder: Path, place: Path, exact: Path
) -> None:
    config = with_teacher(config, folder)
    ends = []
    for cache in (None, str(exact)):
        teacher = {**config["teacher"], "cache": cache}
        trainer = trainer_for({**config, "teacher": teacher}, place / str(cache is None), batch=BATCH)
        losses = []
        for epoch in range(2):
            trainer.student.train()
            for batch in trainer.train.epoch(trainer.clock.step):
                losses.append(trainer.step(batch)["loss"].item())
                trainer.clock = trainer.clock.tick()
            trainer.method.end_epoch(trainer.student, trainer.clock)
            assert trainer.clock.epoch == epoch + 1
        ends.append((losses, weights_digest(trainer.student)))
    assert ends[0] == ends[1]
    assert len(set(ends[0][0])) == 6


def test_answers_are_divided_by_the_temperature_after_they_were_kept(folder: Path, place: Path, exact: Path) -> None:
    warm = kd(folder, exact, temperature=2.5)
    trainers = [trainer_for(m, place / str(n), batch=BATCH) for n, m in enumerate((warm, kd(folder, temperature=2.5)))]
    batch = next(trainers[0].train.epoch(3))
    trainers[0].clock = trainers[0].clock.tick().tick().tick()
    answers = trainers[0].method.teacher.answers(batch.index, 1, torch.device("cpu"))
    assert torch.equal(answers, trainers[1].method.teacher(batch.images))


def test_kept_logits_and_their_loss_are_those_of_the_teacher(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(folder / "cache"))
    cache = place / "top2"
    assert make(folder, cache, "--top", "2", method={**kd(folder, cache), "temperature": 4.0}) == 0
    assert "40 samples, the 2 greatest of 5 logits in fp16, 16 bytes a sample: 1 KB" in capsys.readouterr().out
    contents = json.loads((cache / "teacher_cache.json").read_text())
    trainer, bare = (trainer_for(kd(folder, c), place / str(n), batch=BATCH) for n, c in enumerate((cache, None)))
    off = []
    for batch in trainer.train.epoch(0):
        whole = bare.method.teacher(batch.images).double()
        kept = trainer.method.teacher.answers(batch.index, 0, torch.device("cpu")).double()
        assert torch.equal(kept.argmax(1), whole.argmax(1))
        p, q = (whole / 4).softmax(1), (kept / 4).softmax(1)
        off += (p * (p / q).log()).sum(1).tolist()
    said = contents["losses"]["0"]["4"]  # of all 40 samples; the epoch above has read 36
    assert max(off) <= said["most"] * 1.0001
    assert abs(np.mean(off) - said["mean"]) < 0.3 * said["mean"]


# ---- making


def two_ranks(base: Path, cache: Path) -> None:
    from lsdali import dist
    from lsdali.faults.pulse import Pulse
    from lsdali.recipe import check_recipe

    tree = tiny(kd(base, cache), base / "images", base / "run", batch=2 * BATCH)
    making = Making.prepare(check_recipe(tree, "test"), "all", "fp32", torch.device("cpu"))
    making.make(2, Pulse(dist.rank()))


@pytest.mark.ranks
def test_two_ranks_write_what_one_writes(folder: Path, place: Path, exact: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, two_ranks, folder, place / "two")
    for epoch in range(2):
        name = f"epoch_{epoch:06d}.bin"
        assert (place / "two" / name).read_bytes() == (exact / name).read_bytes()


def test_after_a_kill_only_what_is_missing_is_made(
    folder: Path, place: Path, exact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(folder / "cache"))
    cache = place / "killed"
    options = ("--top", "all", "--values", "fp32")
    assert make(folder, cache, *options, "--epochs", "1") == 0
    (cache / "epoch_000001.part").write_bytes(b"half of it")
    before = (cache / "epoch_000000.bin").stat().st_mtime_ns
    assert make(folder, cache) == 0  # as the folder has it, without options
    assert (cache / "epoch_000000.bin").stat().st_mtime_ns == before
    assert (cache / "epoch_000001.bin").read_bytes() == (exact / "epoch_000001.bin").read_bytes()
    assert not list(cache.glob("*.part"))


def test_a_dry_run_says_the_size_and_makes_nothing(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(folder / "cache"))
    assert make(folder, place / "none", "--dry-run", "--top", "3", "--values", "fp32") == 0
    said = capsys.readouterr().out
    assert "2 epochs of 40 samples, the 3 greatest of 5 logits in fp32, 22 bytes a sample: 2 KB" in said
    assert not (place / "none").exists()


# ---- what is refused


def refusal(config: Any, place: Path, **others: Any) -> str:
    with pytest.raises(UserError) as caught:
        trainer_for(config, place, **{"batch": BATCH, **others})
    return str(caught.value)


def test_answers_to_something_else_are_refused_by_name(folder: Path, place: Path, exact: Path) -> None:
    method = kd(folder, exact)
    assert "seed: 0 there, 1 here" in refusal(method, place, seed=1)
    assert "precision: fp32 there, bf16 here" in refusal(method, place, precision="bf16")
    data = tiny(method, folder / "images", place)["data"]
    for changed, named_in in (
        ({"train": {"crop": "random_resized", "size": 16, "flip": 0.0}}, "data.train.flip: 0.5 there, 0.0 here"),
        ({"train": {"crop": "pad", "size": 16}}, "data.train.crop: random_resized there, pad here"),
        ({"mean": [0.5, 0.5, 0.5]}, "data.mean: [0.485, 0.456, 0.406] there, [0.5, 0.5, 0.5] here"),
        ({"max_samples": 30}, "data: "),
    ):
        assert named_in in refusal(method, place, data={**data, **changed})
    other = place / "other_teacher"
    trainer_for({"name": "ce"}, other, epochs=1, seed=5).run()
    path = str(other / "checkpoints/best.pt")
    assert "teacher: " in refusal({**method, "teacher": {**method["teacher"], "path": path}}, place)
    assert "lacks epoch 2 and 1 more of 4" in refusal(method, place, epochs=4)
    assert "mix: mixup do not go together" in refusal(method, place, mix={"name": "mixup", "alpha": 0.2})
    assert "holds no teacher's answers" in refusal(kd(folder, place), place)
    data["train"]["repeats"] = 2
    assert "repeats 2 do not go together" in refusal(method, place, data=data)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"name": "ibls", "memory": "dense32"}, "both keep the teacher's answers"),
        ({"name": "ibls_cls", "means": "validation"}, "holds answers to training images"),
        ({"features": {"stages": ["stage1"], "loss": "attention"}}, "holds logits and no maps"),
    ],
)
def test_methods_that_ask_otherwise_refuse_a_cache(more: Any, sentence: str, folder: Path, place: Path) -> None:
    assert sentence in refusal({**kd(folder, place), **more}, place)


def test_the_command_refuses_what_it_cannot_make(
    folder: Path, place: Path, exact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(folder / "cache"))
    for options, method, sentence in (
        ((), {"name": "ce"}, "the method 'ce' asks no teacher"),
        ((), kd(folder), "where to? Name the folder"),
        (("--top", "none"), kd(folder, place), "--top none: give a number of logits, or all"),
        (("--epochs", "3"), kd(folder, place), "--epochs 3: the recipe has epochs 1 to 2"),
        (("--top", "3"), kd(folder, exact), "keeps 5 logits of 5 in fp32"),
        (("seed=4",), kd(folder, exact), "seed: 0 there, 4 here"),
    ):
        assert main([str(recipe_file(folder, method, place)), *options]) == 2
        assert sentence in capsys.readouterr().err


def test_an_answer_that_was_never_given_is_refused(folder: Path, exact: Path, tmp_path: Path) -> None:
    contents = json.loads((exact / "teacher_cache.json").read_text())
    there = open_folder(exact, contents["key"])
    rows = np.fromfile(there.file(0), there.form.dtype)
    there.form.erase(rows, np.arange(40) == 17)
    (tmp_path / "teacher_cache.json").write_text(json.dumps(contents))
    rows.tofile(tmp_path / there.file(0).name)
    teacher = CachedTeacher(open_folder(tmp_path, contents["key"]), "digest", 1.0)
    assert teacher.answers(torch.tensor([16, 18]), 0, torch.device("cpu")).shape == (2, 5)
    with pytest.raises(UserError, match="no answer for sample 17 in epoch 0"):
        teacher.answers(torch.tensor([16, 17]), 0, torch.device("cpu"))
    with pytest.raises(UserError, match="reads no images"):
        teacher(torch.zeros(1, 3, 8, 8))


def test_bad_files_have_no_answer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images")
    (images / "train/class1/3.png").write_bytes(b"no image")
    tree = tiny(kd(folder, tmp_path / "answers"), images, tmp_path / "run", batch=BATCH)
    tree["data"]["max_bad_files"] = 1
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main([str(path), "--epochs", "1", "--top", "all", "--values", "fp32"]) == 0
    rows = np.fromfile(tmp_path / "answers/epoch_000000.bin", np.float32).reshape(40, 5)
    assert np.flatnonzero(np.isnan(rows).any(1)).tolist() == [11]
