"""Layer-wise rates against timm's, frozen parts, and gradient checkpointing: equal weights, exact resume, two ranks."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

from lsdali.cli import main
from lsdali.errors import UserError
from lsdali.methods.kd import KnowledgeDistillation
from lsdali.models import ModelConfig, build_network
from lsdali.models.digest import weights_digest
from lsdali.models.frozen import freeze
from lsdali.models.layers import depths
from lsdali.models.recompute import recompute_blocks
from lsdali.models.student import Student
from lsdali.optim import build_optimizer
from lsdali.optim.configs import SGD
from lsdali.recipe import Recipe
from lsdali.testing.contract import check_resume
from tests.harness import ROOT, tiny
from tests.methods.trainers import trainer_for
from tests.ranks import OnRanks

CPU = torch.device("cpu")
DECAY = 0.7


def student(name: str, **options: Any) -> Student:
    torch.manual_seed(0)
    return Student(build_network(ModelConfig(name=name, **options), 10), {})


def rates(of: Student, name: str) -> dict[str, float]:
    """The factor on the learning rate of each of the network's parameters, as the optimizer has it."""
    config = SGD(lr=1.0, layer_decay=DECAY)
    optimizer = build_optimizer(of, config, CPU, of.head(), depths(of, name))
    optimizer.set_lr(0.5)
    found = {id(p): group["lr"] / 0.5 for group in optimizer.inner.param_groups for p in group["params"]}
    return {key: found[id(p)] for key, p in of.network.named_parameters()}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18"),
        ("timm/resnet18", "resnet18"),
        ("timm/vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("timm/convnext_atto", "convnext_atto"),
        ("timm/efficientnet_b0", "efficientnet_b0"),
    ],
)
def test_rates_are_those_of_timm(name: str, theirs: str) -> None:
    """For torchvision's ResNet too, whose tensors have the same names."""
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    twin = timm.create_model(theirs, num_classes=10)
    expected = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(twin, layer_decay=DECAY) for p in group["params"]
    }
    ours = student(name)
    found = rates(ours, name)
    aliases = ours.network.aliases
    compared = {key: (found[aliases[key]], expected[id(p)]) for key, p in twin.named_parameters()}
    assert len(compared) == len(found)
    assert len({rate for rate, _ in compared.values()}) > 5
    for key, (own, other) in compared.items():
        assert own == pytest.approx(other, rel=1e-12), key


def test_rates_rise_block_by_block() -> None:
    """A network of our own: the stem below all blocks, the classifier above them, a block as one layer."""
    ours = student("preact_resnet10")
    found = rates(ours, "preact_resnet10")
    blocks = [f"stages.stage{n}.0" for n in (1, 2, 3, 4)]
    for key, rate in found.items():
        place = next((n for n, block in enumerate(blocks, 1) if key.startswith(block)), None)
        layer = place if place is not None else 0 if key.startswith("stem") else 5
        assert rate == pytest.approx(DECAY ** (5 - layer), rel=1e-12), key


def test_no_decay_leaves_the_groups_as_they_were() -> None:
    ours = student("preact_resnet10")
    assert all("lr_scale" not in group for group in build_optimizer(ours, SGD(lr=1.0), CPU).inner.param_groups)
    with pytest.raises(ValidationError, match="two ways to the same end"):
        SGD(lr=1.0, layer_decay=0.5, backbone_lr_scale=0.1)


def test_a_network_whose_blocks_nobody_knows_is_refused() -> None:
    flat = student("preact_resnet10")
    flat.network.channels = {}
    with pytest.raises(UserError, match=r"layer_decay: the blocks of 'mine' are not known; name model\.stages"):
        depths(flat, "mine")


# ---- runs


def final(config: dict[str, Any], place: Path, epochs: int = 2, **others: Any) -> tuple[str, Any]:
    """Digest of weights and statistics after a run, and the trainer."""
    trainer = trainer_for({"name": "ls"}, place, epochs=epochs, model=config, **others)
    trainer.run()
    return weights_digest(trainer.student), trainer


SMALL = {"name": "preact_resnet10", "width": 16}


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        {"name": "resnet18"},
        {"name": "wrn_16_2", "dropout": 0.3},
        {"name": "timm/resnet10t", "drop_path": 0.2},
        {"name": "torchvision/shufflenet_v2_x0_5"},
    ],
    ids=lambda model: model["name"],
)
def test_checkpointing_gives_the_weights_and_statistics_of_a_run_without(
    model: dict[str, Any], folder: Path, place: Path
) -> None:
    if model["name"].startswith("timm/"):
        pytest.importorskip("timm")
    options = {"epochs": 1, "precision": "bf16"} if model is SMALL else {"epochs": 1}
    plain, _ = final(model, place / "plain", **options)
    again, trainer = final({**model, "gradient_checkpointing": True}, place / "again", **options)
    assert again == plain
    assert any(type(m).__name__.startswith("Recomputed") for m in trainer.student.modules())


def kept_bytes(network: nn.Module) -> int:
    """What autograd keeps of one forward pass."""
    kept = {}
    images = torch.randn(8, 3, 64, 64)

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        network.train()(images)
    return sum(kept.values())


def test_checkpointing_keeps_less() -> None:
    plain, less = (student("resnet50").network for _ in "ab")
    recompute_blocks(less, "resnet50")
    assert kept_bytes(less) < 0.5 * kept_bytes(plain)
    assert plain.state_dict().keys() == less.state_dict().keys()


def test_what_cannot_be_recomputed_is_refused(folder: Path, place: Path) -> None:
    with pytest.raises(UserError, match="'lenet' has no blocks that could be computed again"):
        recompute_blocks(student("lenet").network, "lenet")
    tree = tiny({"name": "ce"}, place, place, compile="default", model={**SMALL, "gradient_checkpointing": True})
    with pytest.raises(ValidationError, match="gradient_checkpointing and compile do not go together"):
        Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("name", "parts", "count"),
    [
        ("resnet18", ("stem", "layer1"), 3 + 12),
        ("resnet18", ("conv1", "bn1", "layer1.0"), 3 + 6),
        ("preact_resnet10", ("stages.stage1", "stage2"), None),
        ("timm/resnet18", ("conv1", "layer1", "layer2"), None),
    ],
)
def test_named_parts_are_frozen(name: str, parts: tuple[str, ...], count: int | None) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    network = student(name).network
    kept = freeze(network, parts, name)
    still = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert count is None or len(still) == count
    assert still
    of = Student(network, {}, kept).train()
    for key, module in of.network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            frozen = any(k.startswith(f"{key}.") for k in still)
            assert module.training is not frozen, key


def test_a_part_that_is_not_there_is_named() -> None:
    network = student("resnet18").network
    with pytest.raises(UserError, match=r"model.freeze: 'resnet18' has no part 'layer9'; its parts are conv1, bn1, la"):
        freeze(network, ["layer9"], "resnet18")


def test_frozen_parts_and_their_statistics_stay_and_the_rest_learns(folder: Path, place: Path) -> None:
    parts = ["stem", "stage1"]
    trainer = trainer_for({"name": "ce"}, place / "run", model={**SMALL, "freeze": parts}, ema={"decay": 0.5})
    before = {key: x.clone() for key, x in trainer.student.state_dict().items()}
    trainer.run()
    after = trainer.student.state_dict()
    average = trainer.averages["ema"].state_dict()["weights"]
    for key, x in after.items():
        frozen = key.startswith(("network.stem.", "network.stages.stage1."))
        assert torch.equal(x, before[key]) is frozen, key
        assert not frozen or torch.equal(average[key], x), key


ALL = {
    "model": {**SMALL, "freeze": ["stem", "stage1"], "gradient_checkpointing": True},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.05, "layer_decay": 0.6},
}


def test_resume_is_exact(folder: Path, place: Path) -> None:
    check_resume({"name": "ols"}, place, ALL)


@pytest.mark.ranks
def test_resume_is_exact_on_two_ranks(folder: Path, place: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, check_resume, {"name": "ols"}, place, ALL)


def weights_of(model: dict[str, Any], place: Path, out: str) -> None:
    """Leave the digest of a run on this group."""
    digest, _ = final(model, place)
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(digest)


@pytest.mark.ranks
def test_checkpointing_with_norms_over_all_ranks(folder: Path, place: Path, on_ranks: OnRanks) -> None:
    model = {**SMALL, "sync_batchnorm": True}
    on_ranks(2, weights_of, model, place / "plain", str(place / "plain.txt"))
    on_ranks(2, weights_of, {**model, "gradient_checkpointing": True}, place / "again", str(place / "again.txt"))
    assert (place / "plain.txt").read_text() == (place / "again.txt").read_text()


def test_the_commands_of_the_page_are_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/fine_tuning.md").read_text()
    blocks = re.findall(r"```bash\nlsdali (.*?)```", page, re.DOTALL)
    printed = []
    for block in blocks:
        verb, path, *rest = shlex.split(block.replace("\\\n", " "))
        assert main([verb, str(ROOT / path), *rest, "--print"]) == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0]["optimizer"]["layer_decay"] == 0.75
    assert printed[0]["data"]["eval"]["interpolation"] == "bicubic"
    assert printed[1]["method"]["views"] == printed[1]["data"]["train"]["repeats"] == 2
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    KnowledgeDistillation.Config.model_validate(yaml.safe_load(recipe)["method"])
