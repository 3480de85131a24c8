"""torchvision's families: the same numbers, the same names, real votes, one graph, DDP on two ranks."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lsdali import dist
from lsdali.models import ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes
from lsdali.models.families.torchvision import TORCHVISION, PlusBlur
from lsdali.models.student import Student

EXACT = ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
ONE_OF_EACH = [*EXACT, "convnext_tiny", "squeezenet1_1", "resnext50_32x4d", "vgg11"]


def pair(name):
    """Ours and torchvision's with the same draws."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, num_classes=7)
    torch.manual_seed(0)
    return build_network(ModelConfig(name=name), 7), theirs


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_same_numbers_as_torchvision(name):
    ours, theirs = pair(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=1e-6 if "sq" in name else 0)
        if name in EXACT:
            torch.manual_seed(1)  # for dropout
            expected = theirs.train()(images)
            torch.manual_seed(1)
            assert torch.equal(ours.train()(images), expected)


def test_norms_move_as_torchvisions_do():
    ours, theirs = pair("resnet18")
    images = torch.randn(2, 3, 64, 64)
    ours.train()(images), theirs.train()(images)
    assert torch.equal(ours.stem.bn1.running_mean, theirs.bn1.running_mean)


@pytest.mark.parametrize("name", [n for n in TORCHVISION if n != "densenet264"])
def test_every_tensor_of_torchvision_has_a_name_here(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name.removesuffix("_blur"), num_classes=7).state_dict()
        ours = build_network(ModelConfig(name=name), 7)
    assert ours.aliases.keys() == theirs.keys()
    assert set(ours.aliases.values()) == ours.state_dict().keys()


def test_the_real_classifier_votes():
    """For MobileNetV2 the Linear after the dropout, for ConvNeXt LayerNorm and Linear, for MobileNetV3 both layers."""
    for name in ("mobilenet_v2", "densenet121", "convnext_tiny", "mobilenet_v3_small", "squeezenet1_1"):
        ours, theirs = pair(name)
        images = torch.randn(2, 3, 64, 64)
        student = Student(ours, {"votes": DenseVotes()}).train()
        votes = student(images).aux_heads["votes"]  # in training, where dropout is on: it does not act on votes
        student.eval()
        theirs.eval()
        with torch.no_grad():
            votes = student(images).aux_heads["votes"]
            last = list(ours.maps(images).values())[-1]
            places = last.flatten(2).movedim(2, 1)  # [B, L, C]
            head = theirs.classifier
            if name == "convnext_tiny":
                places = F.layer_norm(places, (768,), head[0].weight, head[0].bias, head[0].eps)
                head = head[2]
            elif name == "squeezenet1_1":
                head = nn.Sequential(nn.Unflatten(2, (512, 1, 1)), nn.Flatten(0, 1), head[1], nn.Flatten(1))
            expected = head(places).view(2, -1, 7).argmax(2)
        assert torch.equal(votes, expected), name


def test_a_blur_is_a_plus_of_fifths():
    x = torch.randn(2, 5, 6, 7)
    plus = torch.tensor([[0.0, 0.2, 0.0], [0.2, 0.2, 0.2], [0.0, 0.2, 0.0]]).expand(5, 1, 3, 3)
    torch.testing.assert_close(PlusBlur()(x), F.conv2d(x, plus, padding=1, groups=5))
    with torch.device("meta"):
        ours = build_network(ModelConfig(name="vgg16_bn_blur"), 7)
        maps = ours.maps(torch.empty(1, 3, 64, 64))
    layers = list(ours.stages.modules())
    pools = [n for n, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert [n for n, layer in enumerate(layers) if isinstance(layer, PlusBlur)] == [n - 1 for n in pools]
    assert [x.shape[-1] for x in maps.values()] == [64, 32, 16, 8, 2]  # two pools in the last stage


def test_dropout_does_not_act_on_votes():
    ours, _ = pair("mobilenet_v2")
    assert not any(isinstance(part, nn.Dropout) for part in ours.readout.modules())
    maps = {"last": torch.randn(2, 1280, 3, 3)}
    ours.train()
    assert torch.equal(DenseVotes()(maps, ours.readout), DenseVotes()(maps, ours.readout))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny", "squeezenet1_1"])
def test_traces_in_one_graph(name):
    torch._dynamo.reset()
    student = Student(build_network(ModelConfig(name=name), 7), {"votes": DenseVotes()}).eval()
    images = torch.randn(2, 3, 64, 64)
    out = torch.compile(student, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(out.logits, student(images).logits)


@pytest.mark.parametrize(
    "name", ["densenet121", "efficientnet_b0", "resnext50_32x4d", "san10_pairwise", "san10_patchwise"]
)
def test_traces_without_numbers(name):
    torch._dynamo.reset()
    with torch.device("meta"):
        network = build_network(ModelConfig(name=name), 7).eval()
    images = torch.empty(2, 3, 128, 128, device="meta")
    assert torch.compile(network, backend="eager", fullgraph=True)(images).shape == (2, 7)


# ---- two ranks

NETWORKS = (("mobilenet_v3_small", {}), ("shallow_cnn", {}), ("resnet20", {}), ("cifar_shufflenet_v2", {}))


def small(name, options):
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, **options), 5)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()  # so that the two halves of a batch do not mix
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    return Student(network, {"votes": DenseVotes()})


def images_and_labels():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(5, (4,), generator=generator)


def gradients_on_a_rank(results):
    found = []
    for network in NETWORKS:
        model = small(*network)
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.15, about the name of broadcast_buffers
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        images, labels = images_and_labels()
        part = slice(2 * dist.rank(), 2 * dist.rank() + 2)
        F.cross_entropy(wrapped(images[part]).logits, labels[part]).backward()
        found.append([p.grad for p in model.parameters()])
    torch.save(found, results[dist.rank()])


@pytest.mark.ranks
def test_two_ranks_have_the_gradients_of_one(tmp_path, on_ranks):
    results = [tmp_path / f"gradients{r}.pt" for r in range(2)]
    on_ranks(2, gradients_on_a_rank, results)
    ranks = [torch.load(file) for file in results]
    for network, first, second in zip(NETWORKS, *ranks, strict=True):
        model = small(*network)
        images, labels = images_and_labels()
        F.cross_entropy(model(images).logits, labels).backward()
        for a, b, parameter in zip(first, second, model.parameters(), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, parameter.grad, rtol=1e-4, atol=1e-6)
