"""Every family: published sizes, shapes, dense votes with the real classifier, gradients, compilation."""

import copy

import pytest
import torch
from torch import nn

from lsdali.errors import UserError
from lsdali.models import CIFAR, MODELS, ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes, StageHead
from lsdali.models.blocks import PadShortcut, PoolPadShortcut
from lsdali.models.checks import check_image_size
from lsdali.models.digest import weights_digest
from lsdali.models.families.pyramid import ShakeDrop
from lsdali.models.families.wide import BiasedBlock
from lsdali.models.student import Student
from tests.models.published import MILLIONS, OURS, PUBLISHED

SMALL = [
    "preact_resnet18_he",
    "cifar_resnet18",
    "resnet20",
    "resnet8x4",
    "resnet110_sd",
    "cifar_densenet40",
    "resnext29_32x4d",
    "wrn_16_2",
    "cifar_vgg8_bn",
    "cifar_mobilenet_v2_half",
    "cifar_shufflenet_v2",
    "lenet",
    "shallow_cnn",
    "convnet",
]
"""A light one of each family."""


def build(name, classes=10, **options):
    return build_network(ModelConfig(name=name, **options), classes)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "classes"), PUBLISHED | OURS)
def test_size(name, classes):
    with torch.device("meta"):
        assert count(build(name, classes)) == (PUBLISHED | OURS)[name, classes]


@pytest.mark.parametrize(("name", "classes"), MILLIONS)
def test_published_size_in_millions(name, classes):
    with torch.device("meta"):
        assert count(build(name, classes)) / 1e6 == pytest.approx(MILLIONS[name, classes], rel=0.02)


def on_meta(name, classes):
    """A network on the meta device, where the largest one costs nothing; one that reads numbers is built on the CPU."""
    try:
        with torch.device("meta"):
            return build(name, classes)
    except NotImplementedError:  # torch's "Cannot copy out of meta tensor"
        return build(name, classes).to("meta")


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_dense_votes(name):
    network = on_meta(name, 7).eval()
    for pixels in (28, 32, 64) if name in CIFAR else (128, 224):
        maps = network.maps(torch.empty(2, 3, pixels, pixels, device="meta"))
        features = network.features(maps)
        last = list(maps.values())[-1]
        assert {stage: x.shape[1] for stage, x in maps.items()} == network.channels
        assert list(maps) == list(network.stages)
        assert features.shape == (2, network.classifier.in_features)
        assert network.logits(maps, features).shape == (2, 7)
        if network.positionwise:
            assert DenseVotes().vote(last, network.readout).shape == (2, last.shape[2] * last.shape[3])
        assert network.positionwise != name.startswith("vgg")
    assert network.classifier.out_features == network.classes == 7
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1):
            assert module.in_channels >= 16  # below, torch 2.15's CPU kernels overrun their buffers in channels_last


@pytest.mark.parametrize("name", SMALL)
def test_a_map_of_one_value_votes_for_the_prediction(name):
    """Where all positions of the last map are the same, each votes for what the network predicts."""
    network = build(name).eval()
    width = list(network.channels.values())[-1]
    last = torch.randn(4, width, 1, 1).expand(4, width, 3, 2)
    votes = DenseVotes()({"last": last}, network.readout)
    predicted = network.logits({"last": last}, network.features({"last": last})).argmax(1)
    assert torch.equal(votes, predicted[:, None].expand(4, 6))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_and_copies_are_apart(name):
    network = build(name)
    stage, width = next(iter(network.channels.items()))
    student = Student(network, {"exit": StageHead(stage, width, 10)})
    twin = copy.deepcopy(student)
    out = student(torch.randn(4, 3, 32, 32))
    (out.logits.square().sum() + out.aux_heads["exit"].square().sum()).backward()
    dead = [n for n, p in student.named_parameters() if p.grad is None]
    assert not dead
    assert all(p.grad is None for p in twin.parameters())
    assert twin.network.readout is not network.readout
    kept = set(map(id, twin.network.parameters()))
    assert {id(p) for p in twin.network.readout.parameters()} <= kept


@pytest.mark.parametrize("name", [name for name in SMALL if name != "resnet110_sd"])
def test_traces_in_one_graph(name):
    torch._dynamo.reset()
    student = Student(build(name), {"votes": DenseVotes()}).eval()
    images = torch.randn(2, 3, 32, 32)
    out = torch.compile(student, backend="eager", fullgraph=True)(images)
    assert torch.equal(out.aux_heads["votes"], student(images).aux_heads["votes"])


@pytest.mark.parametrize("name", ["pyramidnet200_shakedrop", "resnet110_sd"])
def test_random_depth_traces_in_one_graph(name):
    """Short twins: the first blocks of the last stage, in training."""
    torch._dynamo.reset()
    blocks = list(build(name).stages["stage3"].children())[-4:-2]
    part = nn.Sequential(*blocks)
    width = blocks[0].branch[0].num_features if name.startswith("pyramid") else 64
    images = torch.randn(2, width, 4, 4)
    torch.compile(part, backend="aot_eager", fullgraph=True)(images).sum().backward()
    assert all(p.grad is not None for p in part.parameters())


# ---- blocks


@pytest.mark.parametrize("pixels", [7, 8])
def test_shortcuts_without_weights(pixels):
    x = torch.randn(2, 4, pixels, pixels)
    out = PadShortcut(4, 10, 2)(x)
    assert out.shape == (2, 10, 4, 4)
    assert torch.equal(out[:, 3:7], x[:, :, ::2, ::2])
    assert out[:, :3].count_nonzero() == out[:, 7:].count_nonzero() == 0
    pooled = PoolPadShortcut(4, 6, 2)(x)
    assert pooled.shape == (2, 6, 4, 4)
    torch.testing.assert_close(pooled[:, :4, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    assert pooled[:, 4:].count_nonzero() == 0


def test_shakedrop_in_numbers():
    shake = ShakeDrop(0.5)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        y = shake(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        alpha, beta = (y / x).detach().flatten(1), slope.flatten(1)
        for factors, low in ((alpha, -1), (beta, 0)):
            torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
            assert ((factors >= low) & (factors <= 1)).all()
        kept = bool((alpha - 1).abs().max() < 1e-12)
        seen.add(kept)
        assert kept == bool((beta - 1).abs().max() < 1e-12)
        if not kept:
            assert (alpha - beta).abs().min() > 1e-6
    assert seen == {True, False}
    x = torch.randn(3, 4, 2, 2)
    assert torch.equal(shake.eval()(x), 0.5 * x)


@pytest.mark.parametrize("name", ["resnet110_sd", "pyramidnet200_shakedrop"])
def test_gates_come_from_torchs_generator(name):
    network = build(name, drop_path=0.9)
    block = list(network.stages["stage3"].children())[3]
    width = block.branch[0].num_features if name.startswith("pyramid") else 64
    x = torch.randn(2, width, 4, 4)
    torch.manual_seed(5)
    first = [block(x) for _ in range(4)]
    torch.manual_seed(5)
    assert all(torch.equal(a, block(x)) for a in first)
    assert any(not torch.equal(a, first[0]) for a in first)


def test_rates_of_stochastic_depth_rise():
    network = build("resnet110_sd")
    rates = [block.drop for stage in network.stages.values() for block in stage]
    assert rates == [0.5 * i / 54 for i in range(1, 55)]
    network = build("resnet110_sd", drop_path=0.2)
    assert network.stages["stage3"][-1].drop == 0.2


def test_the_block_of_resnet32_wide_strides_late_and_passes_x_itself():
    with torch.device("meta"):
        network = build("resnet32_wide")
    assert all(c.bias is not None for c in network.modules() if isinstance(c, nn.Conv2d))
    assert network.stages["stage3"][-2].momentum == 0.9
    block = BiasedBlock(16, 16, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)
    down = BiasedBlock(16, 32, 2)
    assert down.conv1(x).shape == (2, 32, 8, 8)
    assert down(x).shape == (2, 32, 4, 4)


def test_inception_v4_has_the_maps_of_its_stem_without_strides():
    with torch.device("meta"):
        maps = build("cifar_inception_v4").maps(torch.empty(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in maps.values()] == [(384, 30, 30), (1024, 14, 14), (1536, 7, 7)]


def test_lenet_and_shallow_cnn_are_the_linear_nets_on_32_pixels():
    for name, width, side in (("lenet", 16, 5), ("convnet", 16, 6), ("shallow_cnn", 128, 4)):
        network = build(name).eval()
        last = list(network.stages.values())[-1]
        x = torch.randn(2, width, side, side)
        flat = x.flatten(1) @ last[0].weight.flatten(1).T + last[0].bias
        torch.testing.assert_close(last[0](x).flatten(1), flat)
        small = torch.randn(2, 3, 28, 28)
        assert torch.equal(network(small), network(nn.functional.pad(small, (2, 2, 2, 2))))


def test_the_textbook_block_adds_x_itself():
    block = build("preact_resnet18_he", width=16).eval().stages["stage1"][0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("name", "small", "fitting", "reason"),
    [
        ("san15_pairwise", 64, 128, "Padding size"),
        ("cifar_densenet121", 4, 8, "Output size is too small"),
        ("cifar_vgg16", 4, 8, "Output size is too small"),
    ],
)
def test_images_that_are_too_small_are_refused_before_the_first_step(name, small, fitting, reason):
    network = build_network(ModelConfig(name=name), 5)
    before = weights_digest(network)
    check_image_size(network, name, [2 * fitting, fitting])
    with pytest.raises(UserError, match=f"'{name}' does not take images of {small} px .*{reason}.*data.train.size"):
        check_image_size(network, name, [fitting, small])
    assert network.training
    assert weights_digest(network) == before
