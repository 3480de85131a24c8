"""timm's networks: the same numbers, stages and votes, and what cannot be done is said."""

import builtins
import copy

import pytest
import torch
from pydantic import ValidationError

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes, StageHead
from lsdali.models.checks import check_aux_heads, check_image_size
from lsdali.models.student import Student

timm = pytest.importorskip("timm")

STAGES = {
    "timm/res2net50_26w_8s": [64, 256, 512, 1024, 2048],
    "timm/efficientnet_b0": [16, 24, 40, 112, 320, 1280],
    "timm/inception_v4": [64, 160, 384, 1024, 1536],
    "timm/inception_resnet_v2": [64, 192, 320, 1088, 1536],
    "timm/convnext_atto": [40, 80, 160, 320],
    "timm/mobilenetv3_small_050": [16, 8, 16, 24, 288],
    "timm/vit_tiny_patch16_224": [],
}


def pair(name):
    torch.manual_seed(0)
    theirs = timm.create_model(name.removeprefix("timm/"), num_classes=7)
    torch.manual_seed(0)
    return build_network(ModelConfig(name=name), 7), theirs


@pytest.mark.parametrize("name", STAGES)
def test_same_numbers_as_timm(name):
    ours, theirs = pair(name)
    assert list(ours.channels.values()) == STAGES[name]
    assert ours.aliases.keys() == theirs.state_dict().keys()
    pixels = ours.image_size or (96 if "inception" in name else 64)
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
        if not ours.channels:
            return
        maps = ours.maps(images)
        assert {stage: x.shape[1] for stage, x in maps.items()} == ours.channels
        last = list(maps.values())[-1]
        votes = DenseVotes()(maps, ours.readout)
        for h, w in ((0, 0), (last.shape[2] - 1, last.shape[3] - 1)):
            place = theirs.forward_head(last[:, :, h : h + 1, w : w + 1]).argmax(1)
            assert torch.equal(votes[:, h * last.shape[3] + w], place)


def test_published_sizes():
    """IBLS's count of Inception-v4, OLS's of Res2Net; the other Res2Net is our own count."""
    for name, classes, count in (
        ("inception_v4", 10, 41_158_186),
        ("res2net50_26w_4s", 200, 24_059_920),
        ("res2net50_26w_8s", 10, 46_375_266),
    ):
        network = build_network(ModelConfig(name=f"timm/{name}"), classes)
        assert sum(p.numel() for p in network.parameters()) == count


def test_copies_gradients_and_one_graph():
    torch._dynamo.reset()
    network = build_network(ModelConfig(name="timm/mobilenetv3_small_050", dropout=0.1, drop_path=0.1), 7)
    student = Student(network, {"votes": DenseVotes(), "exit": StageHead("stage2", 8, 7)})
    twin = copy.deepcopy(student)
    images = torch.randn(2, 3, 64, 64)
    out = student(images)
    assert out.logits.grad_fn is not None
    (out.logits.sum() + out.aux_heads["exit"].sum()).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in twin.parameters())
    twin.eval()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)(images)
    assert torch.equal(compiled.aux_heads["votes"], twin(images).aux_heads["votes"])


def test_a_network_without_maps_refuses_methods_that_read_them():
    network = build_network(ModelConfig(name="timm/vit_tiny_patch16_224"), 7)
    check_aux_heads(network, "timm/vit_tiny_patch16_224", {}, "ce")
    with pytest.raises(UserError) as caught:
        check_aux_heads(network, "timm/vit_tiny_patch16_224", {"votes": DenseVotes()}, "zls")
    assert str(caught.value) == (
        "the method 'zls' reads maps of images between stages, and 'timm/vit_tiny_patch16_224' has none"
    )
    network.channels, network.positionwise = {"one": 3}, False
    check_aux_heads(network, "x", {"exit": StageHead("one", 3, 7)}, "deep")
    with pytest.raises(UserError) as caught:
        check_aux_heads(network, "x", {"votes": DenseVotes()}, "zls")
    assert str(caught.value) == (
        "the method 'zls' classifies single positions of the last map, and the classifier of 'x' cannot read them"
    )
    check_image_size(network, "x", (224, 224))
    with pytest.raises(UserError) as caught:
        check_image_size(network, "x", (224, 32))
    assert str(caught.value) == (
        "'x' takes images of 224 px only, and the data has 32: set data.train.size and data.eval.size"
    )


def test_missing_timm_names_the_remedy(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValidationError) as caught:
        ModelConfig(name="timm/resnet50")
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == "networks named timm/... need the package timm: pip install lsdali[timm]"


def test_heads_and_options_that_do_not_fit():
    for config, sentence in (
        (
            ModelConfig(name="timm/resnetv2_18", dropout=0.1),
            "the classifier of timm's resnetv2_18 is not one linear layer: leave out model.dropout",
        ),
        (ModelConfig(name="timm/inception_v4", drop_path=0.1), "timm's inception_v4 takes no drop_path"),
    ):
        with pytest.raises(UserError) as caught:
            build_network(config, 7)
        assert str(caught.value).startswith(sentence)
