"""Recipes: each key is checked, all errors come at once, and the text of an error is the user interface."""

import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from lsdali.data.sampling.augment import AUGMENTATIONS
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.recipe import Recipe, differences, load, to_yaml
from lsdali.recipe.editor import editor_schema

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
OF_NO_PAPER = ("gaussians_ce", "folder_transfer")
RECIPES_OF_PAPERS = [path for path in sorted(ROOT.glob("recipes/*.yaml")) if path.stem not in OF_NO_PAPER]
GOOD = """
epochs: 2
batch: 96
data: {name: digits}
model: {name: preact_resnet18, width: 16}
method: {name: zls, weight: 0.1}
optimizer: {name: nesterov, lr: 0.1}
schedule: {name: cosine}
"""


def errors(tmp_path: Path, text: str = GOOD, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return [without_source(line) for line in str(caught.value).splitlines()]


def without_source(line: str) -> str:
    return re.sub(r"^(\S*recipe.yaml(:\d+)?|command line): ", "", line.strip())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_survives_being_printed(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    printed = tmp_path / path.name
    printed.write_text(to_yaml(recipe))
    assert load(printed) == recipe


def test_every_method_has_a_recipe() -> None:
    assert {yaml.safe_load(path.read_text())["method"]["name"] for path in RECIPES} >= set(METHODS)


def test_every_recipe_says_where_its_numbers_come_from() -> None:
    for path in RECIPES:
        head = path.read_text().split("seed:")[0]
        assert "Source:" in head or "our own" in head, path


@pytest.mark.parametrize("path", RECIPES_OF_PAPERS, ids=lambda path: path.stem)
def test_recipes_of_papers_say_what_becomes_of_the_last_batch(path: Path) -> None:
    head = " ".join(path.read_text().split("seed:")[0].replace("\n# ", " ").split())
    assert re.search(r"last (\S+ ){0,8}batch|last one of an epoch", head), head


def test_recipes_say_where_selection_and_augmentation_differ() -> None:
    heads = {path.stem: path.read_text().split("seed:")[0] for path in RECIPES_OF_PAPERS}
    for name in ("cifar10_ce", "cifar10_ibls", "fashionmnist_ce", "fashionmnist_ibls"):
        assert "least loss" in heads[name]
    for name in ("imagenet_ols", "imagenet_pskd"):
        assert "colour jitter" in heads[name]
        assert "lighting" in heads[name]


def test_the_deep_votes_of_zls_read_maps_as_they_are() -> None:
    """megengine_zipfls/Makefile gives no --upsample for this data set."""
    recipe = load(ROOT / "recipes/tinyimagenet_zls_deep.yaml")
    assert (recipe.method.upsample, recipe.method.weight, recipe.batch) == (None, 1.0, 128)


def test_every_key_is_described() -> None:
    schema = Recipe.model_json_schema()
    parts = {"Recipe": schema, **schema["$defs"]}
    keys = {f"{name}.{key}": p for name, part in parts.items() for key, p in part.get("properties", {}).items()}
    assert len(keys) > 300
    assert not [key for key, content in keys.items() if not content.get("description")]
    assert keys["Cifar10.std"]["description"] == keys["Folder.std"]["description"], "an override keeps its base's text"


def test_the_schema_for_editors_accepts_every_recipe() -> None:
    stored = editor_schema()
    kind = jsonschema.validators.validator_for(stored)
    kind.check_schema(stored)  # once: `jsonschema.validate` does it for each recipe
    for path in RECIPES:
        kind(stored).validate(yaml.safe_load(path.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        kind(stored).validate({**yaml.safe_load(GOOD), "epoch": 3})


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epoch=3", "epoch: unknown key; did you mean 'epochs'?"),
        ("method.wieght=0.2", "method.wieght: unknown key; did you mean 'weight'?"),
        ("data.batch=32", "data.batch: unknown key; did you mean 'batch'?"),
        ("data.train.sclae=[0.1, 1.0]", "data.train.sclae: unknown key; did you mean 'scale'?"),
        (
            "data.train.augment=[{name: lighting}, {name: rand_augment, mm: 3}]",
            "data.train.augment.1.mm: unknown key; did you mean 'm'?",
        ),
        (
            "data.train.augment=[{name: rand_augmnt}]",
            "data.train.augment.0.name: 'rand_augmnt' is not allowed; did you mean 'rand_augment'?",
        ),
        (
            "data.train.augment=[{name: rotation, degrees: far}]",
            "data.train.augment.0.degrees: expected a number, got the text 'far'",
        ),
        (
            "data.train.augment=[{degrees: 3}]",
            f"data.train.augment.0.name: missing; one of {', '.join(sorted(AUGMENTATIONS))}",
        ),
        (
            "data.train.ramp={first: 16, end: 2}",
            "data.train.ramp.end 2: no epoch is left after so many of 2, and none would see the full size",
        ),
        (
            "data.train.ramp={first: 64, end: 1}",
            "data.train: ramp.first 64 must not be above size 32, which the ramp ends at",
        ),
        ("precision=bf17", "precision: 'bf17' is not allowed; did you mean 'bf16'?"),
        ("method.name=zlss", "method.name: 'zlss' is not allowed; did you mean 'zls'?"),
        ("data.name=imagnet", "data.name: 'imagnet' is not allowed; did you mean 'imagenet'?"),
        ("batch=many", "batch: expected a whole number, got the text 'many'"),
        ("batch=12.5", "batch: expected a whole number, got 12.5"),
        ("epochs=0", "epochs: must be greater than or equal to 1, got 0"),
        ("save=3", "save: expected a mapping of keys, got 3"),
        ("data.root=7", "data.root: expected text, got 7: write '7' in quotes"),
        (
            "model.name=resnext51_32x4d",
            "model.name: there is no model 'resnext51_32x4d'; did you mean 'resnext50_32x4d'?",
        ),
    ],
)
def test_the_sentence_of_each_error(tmp_path: Path, override: str, sentence: str) -> None:
    assert sentence in errors(tmp_path, GOOD, override)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    assert errors(tmp_path, "epochs: 1\nbatch: 8\ndata: {name: digits}\nmodel: {name: resnet18}\n") == [
        "method: missing",
        "optimizer: missing",
        "schedule: missing",
    ]
    assert "method.teacher: missing" in errors(tmp_path, GOOD.replace("{name: zls, weight: 0.1}", "{name: kd}"))
    assert errors(tmp_path, GOOD.replace("name: cosine", "warmup_epochs: 1.0")) == [
        "schedule.name: missing; one of constant, cosine, linear, one_cycle, polynomial, step"
    ]


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    assert errors(tmp_path, GOOD, "epoch=1", "batch=x", "method.weight=-1.0") == [
        "batch: expected a whole number, got the text 'x'",
        "epoch: unknown key; did you mean 'epochs'?",
        "method.weight: must be greater than or equal to 0, got -1.0",
    ]


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe .*cee.yaml; did you mean .*digits/ce.yaml\?"):
        load(ROOT / "recipes/digits/cee.yaml")
    assert "holds no recipe: expected keys such as epochs" in errors(tmp_path, "- 1\n")[0]
    assert "is not valid YAML" in errors(tmp_path, "a: [1\n")[0]
    assert "key 'seed' is given twice, again in line 2" in errors(tmp_path, "seed: 1\nseed: 2\n")[0]
    assert errors(tmp_path, GOOD, "epochs") == [
        "override 'epochs': write key=value, for example data.root=/data/imagenet"
    ]


def test_overrides_are_typed_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    recipe = load(
        path,
        ["epochs=5", "data.root=/x", "ema.decay=0.99", "method.upsample=bilinear", "save.every_steps=null"],
    )
    assert (recipe.epochs, recipe.data.root, recipe.save.every_steps, recipe.run_dir) == (
        5,
        "/x",
        None,
        "runs/mine",
    )
    assert recipe.ema is not None
    assert recipe.ema.decay == 0.99
    part = load(path, ["data.train.size=24", "schedule.warmup_epochs=1.0"])
    assert part.data.train.model_dump(exclude={"size"}) == recipe.data.train.model_dump(exclude={"size"})
    assert part.data.train.size == 24
    with pytest.raises(Exception, match="frozen"):
        recipe.epochs = 6  # type: ignore[misc]


def test_differences_name_what_decides_a_result(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    old = load(path).model_dump(mode="json")
    same = load(path, ["save.keep=9", "data.root=/elsewhere", "run_dir=/y", "log.every_steps=1"]).model_dump(
        mode="json"
    )
    other = load(path, ["method.weight=0.5", "seed=3"]).model_dump(mode="json")
    assert differences(old, same) == []
    assert differences(old, other) == ["seed: 0 -> 3", "method.weight: 0.1 -> 0.5"]


def test_the_command_line_prints_the_resolved_recipe() -> None:
    command = [sys.executable, "-m", "lsdali.train", "recipes/digits/zls.yaml", "seed=7", "--print"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tree = yaml.safe_load(done.stdout)
    assert (tree["seed"], tree["save"]["keep"], tree["run_dir"]) == (7, 2, "runs/digits_zls")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from lsdali.train import arguments; arguments(); print({'torch', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_numbers_and_text_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        GOOD.replace("lr: 0.1", "lr: 1e-3").replace("{name: digits}", "{name: digits, classes: [no, 'yes']}")
    )
    recipe = load(path, ["optimizer.weight_decay=5E-4", "run_dir=2024-11-25", "seed=010"])
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.seed) == (0.001, 0.0005, 10)
    assert (recipe.data.classes, recipe.run_dir) == (("no", "yes"), "2024-11-25")
    assert errors(tmp_path, GOOD, "run_dir=0") == ["run_dir: expected text, got 0: write '0' in quotes"]


def test_short_forms_and_anchors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "x-common: &rate {lr: 0.2}\nepochs: 2\nbatch: 96\ndata: digits\nmodel: resnet18\nmethod: zls\n"
        "optimizer: {name: sgd, <<: *rate}\nschedule: cosine\n"
    )
    recipe = load(path, ["data.train.augment=[grayscale, {name: rotation, degrees: 5.0}]", "method.weight=0.3"])
    assert (recipe.model.name, recipe.method.name, recipe.method.weight, recipe.optimizer.lr) == (
        *("resnet18", "zls", 0.3, 0.2),
    )
    assert [a.name for a in recipe.data.train.augment] == ["grayscale", "rotation"]
    assert load(path, ["method=ls"]).method.name == "ls"


def test_paths_know_the_home_folder_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    recipe = load(path, ["run_dir=~/runs/a", "data.root=${SCRATCH}/data"])
    assert (recipe.run_dir, recipe.data.root) == ("/home/me/runs/a", "/scratch/me/data")
    lists = ["data.name=list", "data.root=/d", "data.train_list=~/a.txt", "data.val_list=${SCRATCH}/b.txt"]
    crops = ["data.train={crop: pad, size: 32}", "data.eval={resize: 32, size: 32}"]
    recipe = load(path, [*lists, *crops])
    assert (recipe.data.train_list, recipe.data.val_list) == ("/home/me/a.txt", "/scratch/me/b.txt")
    assert errors(tmp_path, GOOD, "data.root=${NOWHERE}/data") == [
        "data.root: the environment has no variable NOWHERE: export it, or write the path out"
    ]
    assert errors(tmp_path, GOOD, 'run_dir="a\\0b"') == ["run_dir: text cannot hold the character NUL"]


def test_errors_know_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("weight: 0.1", "wieght: 0.1"))
    with pytest.raises(UserError) as caught:
        load(path, ["batch=x"])
    assert str(caught.value).splitlines() == [
        f"{path}:6: method.wieght: unknown key; did you mean 'weight'?",
        "  command line: batch: expected a whole number, got the text 'x'",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("batch_size=32", "batch_size: unknown key; did you mean 'batch'?"),
        ("amp=true", "amp: unknown key; write precision: fp16 or bf16"),
        ("label_smoothing=0.1", "label_smoothing: unknown key; write method: {name: ls, smoothing: 0.1}"),
        ("num_workers=4", "num_workers: unknown key; did you mean 'data.threads'?"),
        ("wd=0.1", "wd: unknown key; did you mean 'optimizer.weight_decay'?"),
        ("method={name: ls, eps: 0.1}", "method.eps: unknown key; did you mean 'smoothing'?"),
        (
            "model=ResNet18",
            "model.name: there is no model 'ResNet18'; "
            "did you mean preact_resnet18 or cifar_resnet18 for 32 px, resnet18 for 224 px?",
        ),
        ("model=imagenetresnet34", "model.name: there is no model 'imagenetresnet34'; did you mean cifar_resnet34?"),
        (
            "data.train={crop: pad, size: 32, pad: 4, augment: [{name: randaugment}]}",
            "data.train.augment.0.name: 'randaugment' is not allowed; did you mean 'rand_augment'?",
        ),
        ("warmup=5", "warmup: unknown key; did you mean 'schedule.warmup_epochs'?"),
        ("resume=true", "resume: unknown key; write nothing: the same command continues a run"),
        (
            "data.download=true",
            "data.download: 'digits' has no such key; it is for cifar10, cifar100, mnist, fashionmnist, svhn, ...",
        ),
        ("model=LeNet5", "model.name: there is no model 'LeNet5'; did you mean lenet?"),
        ("data.limit=5", "data.limit: is called data.max_samples since version 0.2"),
        ("data.split={fraction: 0.1}", "data.split: is called data.holdout since version 0.2"),
        ("seed=" + "9" * 5000, "override seed: the number in line 1 has 5000 digits"),
        ("data=" + "[" * 5000, "override data: it is nested too deeply, more than 50 levels"),
    ],
)
def test_words_of_other_trainers_and_old_keys(tmp_path: Path, override: str, sentence: str) -> None:
    assert sentence in errors(tmp_path, GOOD, override)


def test_another_kind_of_a_part_drops_the_files_keys_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    images = "train: {crop: pad, size: 32}, eval: {resize: 32, size: 32}"
    folder = f"{{name: folder, root: /d, train_dir: a, val_dir: b, {images}}}"
    path.write_text(GOOD.replace("{name: digits}", folder))
    recipe = load(path, ["data.name=list", "data.train_list=mine.txt"])
    assert (recipe.data.name, recipe.data.train_list, recipe.data.train.size) == ("list", "mine.txt", 32)
    assert load(path, ["method.name=ce"]).method.name == "ce"
    assert errors(tmp_path, path.read_text(), "data.train_dir=x", "data.name=list") == [
        "data.train_dir: 'list' has no such key; it is for folder, imagenet"
    ]


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    recipe = load(path, ["method=ls", "optimizer.lr=5e-4"])
    assert (recipe.method.name, recipe.optimizer.lr, recipe.data.name) == ("ls", 0.0005, "digits")
