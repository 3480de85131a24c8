"""The networks: what a recipe can name, the pre-activation net, digests, and what a wrong name is told."""

import pytest
import torch
import torchvision
from pydantic import ValidationError

from lsdali.errors import UserError
from lsdali.models import MODELS, ModelConfig, build_network
from lsdali.models.digest import weights_digest
from lsdali.models.families.sized import sized
from lsdali.models.families.torchvision import RESNETS
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


# ---- depth and width in a name


@pytest.mark.parametrize(
    ("name", "count"),
    [("wrn_40_4", 8_972_340), ("wrn_28_10", 36_536_884), ("resnet56_bottleneck", 614_452)],
)
def test_sizes_in_a_name_are_those_of_the_published_networks(name: str, count: int) -> None:
    """Parameters with 100 classes that the code of OLS has."""
    found = sized(name)
    assert found is not None
    network = found(100)
    assert sum(p.numel() for p in network.parameters()) == count
    assert weights_shapes(network) == weights_shapes(build_network(ModelConfig(name=name), 100))


def weights_shapes(network: Network) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("wrn_10_1", 9), ("resnet8_basic", 7), ("resnet11_bottleneck", 13), ("pyramidnet11_48", 10)],
)
def test_a_network_has_the_depth_of_its_name(name: str, convolutions: int) -> None:
    """Layers less the classifier, and shortcuts with weights where the width changes."""
    network = build_network(ModelConfig(name=name), 5)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == convolutions
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_pyramidnet_grows_by_what_its_name_says() -> None:
    network = build_network(ModelConfig(name="pyramidnet20_60"), 5)
    assert network.classifier.in_features == 4 * (16 + 60)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrn_56_4", "wrn_56_4: its depth is 6n + 4, such as 52 or 58"),
        ("wrn_4_4", "wrn_4_4: its depth is 6n + 4, such as 10 or 16"),
        ("resnet99999999999_basic", "resnet99999999999_basic: its depth is 6n + 2, such as 1994 or 2000"),
        ("wrn_16_0", "wrn_16_0: its width is a number from 1 to 1000"),
    ],
)
def test_depths_that_there_are_not(name: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(name=name)
    assert sentence in str(caught.value)


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
            + ", ".join(
                sorted(
                    {n for n in MODELS if n.startswith(("convnext", "efficientnet"))}
                    | {*RESNETS, "pyramidnet200_shakedrop", "resnet110_sd", "resnet152_sd"}
                )
            ),
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
