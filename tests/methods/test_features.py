"""The hook for features in methods with a teacher: what is asked for, what is refused, and what it adds to the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.shared.features import FEATURE_LOSSES, FeatureConfig
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models import ModelConfig, build_network
from lsdali.models.teacher import Teacher
from tests.methods.trainers import CONFIGS, trainer_for, with_teacher

TAUGHT = {name for name, kind in METHODS.items() if issubclass(kind, TaughtMethod)}
TEACHER = {"source": "checkpoint", "path": "TEACHER"}


def config(folder: Path, name: str = "kd", **features: Any) -> Any:
    return with_teacher({"name": name, "teacher": TEACHER, "features": features}, folder)


def test_which_methods_take_it() -> None:
    assert {"kd", "dkd", "dist", "multi_level", "nkd"} == TAUGHT
    used = {c["features"]["loss"]["name"] for c in CONFIGS if "features" in c}
    assert used == set(FEATURE_LOSSES), "each loss has a recipe, and so the contract's tests"


@pytest.mark.parametrize("name", sorted(TAUGHT))
def test_it_adds_its_term_to_the_method_s_loss(name: str, folder: Path, place: Path) -> None:
    """Same student, same images: the loss with features, less their weighted term, is the loss without."""
    plain = with_teacher({"name": name, "teacher": TEACHER}, folder)
    without = trainer_for(plain, place / "without")
    features = {"stages": ["stage2", "stage4"], "loss": {"name": "attention", "weight": 7.0}}
    trainer = trainer_for(config(folder, name, **features), place / "with")
    batch = next(trainer.train.epoch(0))
    for one in (without, trainer):
        one.student.eval()
    first, second = (one.method.loss(one.forward, batch, one.clock) for one in (without, trainer))
    assert second.terms["features"] > 0
    torch.testing.assert_close(second.total - second.terms["features"], first.total)
    assert set(second.terms) == {*first.terms, "features"}


def test_a_teacher_of_itself_has_no_distance(folder: Path, place: Path) -> None:
    """A student with its teacher's weights, in evaluation mode, hands out the teacher's maps."""
    for loss in ("attention", "relational"):
        trainer = trainer_for(config(folder, stages=["stage1", "stage3"], loss=loss), place / loss)
        teacher = torch.load(folder / "teacher/checkpoints/best.pt", weights_only=True)["parts"]["student"]
        trainer.student.load_state_dict(teacher)
        trainer.student.eval()
        batch = next(trainer.train.epoch(0))
        out = trainer.method.loss(trainer.forward, batch, trainer.clock)
        assert out.terms["features"].item() < 1e-5


def test_the_maps_of_a_teacher_with_another_normalisation() -> None:
    torch.manual_seed(0)
    network = build_network(ModelConfig(name="preact_resnet10"), 5).eval()
    images = torch.rand(2, 3, 32, 32)
    own, given = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))

    def normalised(by: Any) -> torch.Tensor:
        return (images - torch.tensor(by[0]).view(3, 1, 1)) / torch.tensor(by[1]).view(3, 1, 1)

    with torch.no_grad():
        expected, _, logits = network.parts(normalised(own))
    teacher = Teacher(network, 2.0, own)
    teacher.expect(given)
    found, maps = teacher.look(normalised(given))
    torch.testing.assert_close(found, logits / 2)
    torch.testing.assert_close(dict(maps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ({"stages": ["layer9"]}, r"features\.stages: the student has no stage 'layer9'; its stages are stage1, stage2"),
        ({"stages": ["stage1"], "teacher_stages": ["x"]}, r"features\.teacher_stages: the teacher has no stage 'x'"),
    ],
)
def test_a_stage_that_is_not_there_is_named(features: Any, sentence: str, folder: Path, place: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        trainer_for(config(folder, loss="attention", **features), place)


def test_an_ensemble_has_no_maps(folder: Path, place: Path) -> None:
    part = with_teacher(TEACHER, folder)
    tree = {
        "name": "kd",
        "teacher": {"source": "ensemble", "of": [part, part]},
        "features": {"stages": ["stage1"], "loss": "attention"},
    }
    with pytest.raises(UserError, match="the teacher has no stage 'stage1'; its stages are none with maps"):
        trainer_for(tree, place)


def test_stages_come_in_pairs() -> None:
    with pytest.raises(ValidationError, match="2 stages, but 1 teacher_stages: give pairs"):
        FeatureConfig.model_validate({"stages": ["a", "b"], "teacher_stages": ["a"], "loss": {"name": "attention"}})
