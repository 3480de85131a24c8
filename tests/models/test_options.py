"""Initialisation by name, zero-gamma, dropout and depth rates by recipe."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network


def build(name, **options):
    torch.manual_seed(0)
    return build_network(ModelConfig(name=name, **options), 10)


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("torch", 1 / math.sqrt(3 * 9 * 64)),  # uniform
        ("kaiming_out", math.sqrt(2 / (9 * 64))),
        ("kaiming_in", math.sqrt(2 / (9 * 64))),
    ],
)
def test_init_by_name(init, std):
    network = build("cifar_resnet18", init=init)
    weight = network.stages["stage1"][0].conv1.weight
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert network.stages["stage1"][0].bn1.weight.eq(1).all()


def test_inits_differ_where_fans_do():
    inits = ("kaiming_in", "kaiming_out")
    first = [build("cifar_resnet18", init=i).stages["stage2"][0].conv1.weight.std() for i in inits]
    assert (first[0] / first[1]).item() == pytest.approx(math.sqrt(2), rel=0.02)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "cifar_resnet18", "cifar_resnet50", "resnext29_32x4d", "pyramidnet164"]
)
def test_zero_gamma_makes_blocks_identities(name):
    network = build(name, zero_gamma=True).eval()
    block = list(next(iter(network.stages.values())).children())[-1]
    width = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.rand(2, width, 4, 4)
    torch.testing.assert_close(block(x)[:, :width], x)


def test_zero_gamma_of_timm():
    network = build("timm/resnet10t", zero_gamma=True)
    assert network.inner.layer4[-1].bn2.weight.eq(0).all()


def test_zero_gamma_is_refused_without_such_norms():
    with pytest.raises(UserError) as caught:
        build("preact_resnet18", zero_gamma=True)
    assert str(caught.value) == (
        "model.zero_gamma: no residual branch of 'preact_resnet18' ends with a norm; leave the key out"
    )


def rates(network):
    return {part.p for part in network.modules() if isinstance(part, nn.Dropout)}


@pytest.mark.parametrize(
    ("name", "published"),
    [("wrn_16_2", set()), ("shallow_cnn", {0.5}), ("mobilenet_v2", {0.2}), ("squeezenet1_1", {0.5})],
)
def test_dropout_by_recipe(name, published):
    assert rates(build(name)) == published
    assert rates(build(name, dropout=0.3)) == {0.3}
    assert rates(build(name, dropout=0.0)) == set()


def test_dense_layers_drop_their_new_channels():
    assert rates(build("cifar_densenet40", dropout=0.2)) == {0.2}
    assert {
        layer.drop_rate for layer in build("densenet121", dropout=0.2).modules() if hasattr(layer, "drop_rate")
    } == {0.2}


def test_drop_path_by_recipe():
    for name in ("convnext_tiny", "efficientnet_b0"):
        parts = [m.p for m in build(name, drop_path=0.3).modules() if type(m).__name__ == "StochasticDepth"]
        assert 0.25 < max(parts) <= 0.3


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_branches_of_resnets_are_dropped_as_timm_drops_them(name):
    """The same rates; whole samples; nothing in evaluation mode or in a frozen block."""
    timm = pytest.importorskip("timm")
    network, twin = build(name, drop_path=0.5), timm.create_model(name, drop_path_rate=0.5)
    theirs = [getattr(m.drop_path, "drop_prob", 0.0) for m in twin.modules() if hasattr(m, "drop_path")]
    norms = [m for m in network.modules() if m._forward_hooks]
    assert [next(iter(m._forward_hooks.values())).rate for m in norms] == pytest.approx(theirs)
    images, last = torch.randn(64, 3, 32, 32), norms[-1]
    assert torch.equal(network.eval()(images[:2]), build(name).eval()(images[:2]))
    seen = []
    last.register_forward_hook(lambda m, given, out: seen.append(out))
    given = torch.randn(64, last.num_features, 2, 2)
    whole = last(given)
    assert torch.equal(whole, seen.pop()), "in evaluation mode nothing is dropped"
    torch.manual_seed(0)
    last.train()
    out = last(given)
    kept = (out != 0).flatten(1).any(1)
    assert 16 < kept.sum() < 48
    full = torch.nn.functional.batch_norm(given, None, None, last.weight, last.bias, training=True, eps=last.eps)
    torch.testing.assert_close(out[kept], full[kept] / 0.5)
    assert not out[~kept].any()


@pytest.mark.parametrize("options", [{"dropout": 1.0}, {"drop_path": -0.1}, {"width": 8}, {"init": "xavier"}])
def test_out_of_range(options):
    with pytest.raises(ValidationError):
        ModelConfig(name="cifar_resnet18", **options)
