"""The networks: what a recipe can name, the pre-activation net, digests, and what a wrong name is told."""

import pytest
import torch
import torchvision
from pydantic import ValidationError

from lsdali.errors import UserError
from lsdali.models import MODELS, ModelConfig, build_network
from lsdali.models.digest import weights_digest
from lsdali.models.families.torchvision_weights import from_torchvision
from lsdali.models.student import Network


@pytest.mark.parametrize(("classes", "count"), [(100, 11_217_444), (200, 11_268_744)])
def test_preact_resnet18_has_the_published_size(classes, count):
    network = build_network(ModelConfig(name="preact_resnet18"), classes)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(("pixels", "last"), [(28, 4), (32, 4), (64, 8)])
def test_preact_resnet18_sizes(pixels, last):
    network = build_network(ModelConfig(name="preact_resnet18", width=16), 10)
    images = torch.randn(2, 3, pixels, pixels)
    assert network.maps(images)["stage4"].shape == (2, 128, last, last)
    assert network(images).shape == (2, 10)


def test_preact_identity_carries_the_activation():
    block = build_network(ModelConfig(name="preact_resnet18", width=16), 3).eval().stages["stage1"][0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), block.bn1(x).relu())


def test_preact_ends_without_norm():
    network = build_network(ModelConfig(name="preact_resnet18", width=16), 3).eval()
    last = network.maps(torch.randn(2, 3, 32, 32))["stage4"]
    assert (last < 0).any()
    torch.testing.assert_close(network.features({"stage4": last}), last.mean((2, 3)))


def test_same_seed_same_weights():
    networks: list[Network] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(build_network(ModelConfig(name="preact_resnet18", width=16), 3))
    digests = [weights_digest(n) for n in networks]
    assert digests[0] == digests[1] != digests[2]


def test_digest_sees_values_types_shapes_and_names_only():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    assert len(weights_digest(state)) == 64
    layout = {"b": state["b"].clone(), "a": state["a"].t().contiguous().t()}
    assert weights_digest(layout) == weights_digest(state)
    others = [
        {"a": state["a"].view(3, 2), "b": state["b"]},
        {"a": state["a"], "b": state["b"].int()},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"] + 1e-7, "b": state["b"]},
    ]
    assert len({weights_digest(s) for s in [state, *others]}) == 5
    channels_last = torch.nn.Conv2d(3, 4, 3)
    before = weights_digest(channels_last)
    assert weights_digest(channels_last.to(memory_format=torch.channels_last)) == before


# ---- what a wrong name is told


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "resnet19"}, "there is no model 'resnet19'; did you mean 'resnet18'?"),
        ({"name": "xyzzy"}, f"there is no model 'xyzzy'; there are: {', '.join(sorted(MODELS))}"),
        ({"name": "timm/inception_v5"}, "there is no timm model 'inception_v5'; did you mean 'inception_v4'?"),
        ({"name": "timm/xyzzyx"}, "there is no timm model 'xyzzyx'; timm.list_models() lists them"),
        (
            {"name": "resnet18", "width": 16},
            "'resnet18' has a fixed width; `width` is for cifar_resnet101, cifar_resnet152, cifar_resnet18, "
            "cifar_resnet34, cifar_resnet50, cifar_resnet68, preact_resnet10, preact_resnet18, preact_resnet18_he, "
            "preact_resnet34",
        ),
        (
            {"name": "resnet20", "drop_path": 0.1},
            "'resnet20' has no drop_path; `drop_path` is for "
            + ", ".join(sorted(n for n in MODELS if n.startswith(("convnext", "efficientnet"))))
            + ", pyramidnet200_shakedrop, resnet110_sd, resnet152_sd",
        ),
    ],
)
def test_wrong_model(config, sentence):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(config)
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == sentence


def test_schema_lists_the_names():
    assert ModelConfig.model_json_schema()["properties"]["name"]["anyOf"][0]["enum"] == sorted(MODELS)


@pytest.mark.parametrize(
    ("name", "weights", "classes", "sentence"),
    [
        ("resnet51", "V1", 10, "there is no torchvision model 'resnet51'; did you mean 'resnet50'?"),
        (
            "resnet50",
            "IMAGENET1K_V3",
            1000,
            "there is no set of torchvision's resnet50 weights 'IMAGENET1K_V3'; torchvision has: "
            "IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        (
            "resnet50",
            "IMAGENET1K_V1",
            10,
            "torchvision's resnet50 IMAGENET1K_V1 knows 1000 classes, but the data set has 10",
        ),
    ],
)
def test_wrong_torchvision_weights(name, weights, classes, sentence):
    with pytest.raises(UserError) as caught:
        from_torchvision(name, weights, classes)
    assert str(caught.value) == sentence


def test_torchvision_weights_come_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    theirs = torchvision.models.resnet18()
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(from_torchvision("resnet18", "IMAGENET1K_V1", 1000).eval()(images), theirs.eval()(images))


def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        from_torchvision("resnet18", "IMAGENET1K_V1", 1000)
    assert str(caught.value) == (
        "cannot get https://download.pytorch.org/models/resnet18-f37072fd.pth (no route to host); "
        f"put that file into {tmp_path}/checkpoints by hand"
    )
