"""Student and auxiliary heads: votes, memory, DDP on two ranks, compilation."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lsdali import dist
from lsdali.models import aux_heads as aux_heads
from lsdali.models.aux_heads import DenseVotes, StageHead
from lsdali.models.families.dense import densenet
from lsdali.models.student import Network, Student

VECTORS = json.loads((Path(__file__).parents[1] / "reference" / "label_vectors.json").read_text())


def tiny(classes=5, width=8):
    """Two stages without BatchNorm, so that ranks and batches do not mix."""
    stages = {"one": nn.Conv2d(width, width, 3, 2, 1), "two": nn.Conv2d(width, 2 * width, 3, 1, 1)}
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    channels = {"one": width, "two": 2 * width}
    return Network(nn.Conv2d(3, width, 3), stages, pool, nn.Linear(2 * width, classes), channels)


def student():
    torch.manual_seed(0)
    return Student(tiny(), {"votes": DenseVotes(), "exit": StageHead("one", 8, 5)})


def objective(out, labels):
    return F.cross_entropy(out.logits, labels) + F.cross_entropy(out.aux_heads["exit"], labels)


def images_and_labels():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 12, 12, generator=generator), torch.randint(5, (8,), generator=generator)


# ---- auxiliary heads


@pytest.mark.parametrize("upsample", [None, "bilinear", "bicubic"])
def test_Z13_votes(upsample):
    v = VECTORS["Z13"]["inputs"]
    maps = torch.tensor(v["feature_map_nchw"], dtype=torch.float64)
    classifier = nn.Linear(3, 4).double()
    classifier.load_state_dict(
        {"weight": torch.tensor(v["fc_weight"]).double(), "bias": torch.tensor(v["fc_bias"]).double()}
    )
    votes = DenseVotes(upsample)({"first": torch.zeros(1, 3, 9, 9), "last": maps}, classifier)
    assert votes.tolist() == VECTORS["Z13"]["expected"]["by_upsample"][str(upsample)]["votes"]
    pooled = classifier(maps.mean((2, 3)))
    expected = VECTORS["Z13"]["expected"]["pooled_logits"]
    torch.testing.assert_close(pooled, torch.tensor(expected).double(), rtol=0, atol=1e-7)


def test_exits_of_a_densenet_read_and_vote_on_normalised_maps():
    """As in the DenseNet-121 of ZLS: BatchNorm and ReLU of the exit's own after the transition, once a step."""
    torch.manual_seed(0)
    exit = StageHead("stage2", 10, 5)
    network = densenet(6, (1, 2, 1), 5)
    student = Student(network, {"exit": exit, "votes": DenseVotes(exit=exit)})
    images = torch.randn(4, 3, 16, 16)
    out = student(images)
    raw = network.maps(images)["stage2"]
    own = student.exit_norms["stage2"][0]
    assert own.num_batches_tracked == 1
    read = F.batch_norm(raw, None, None, own.weight, own.bias, training=True).relu()
    torch.testing.assert_close(out.aux_heads["exit"], exit.linear(read.mean((2, 3))))
    assert torch.equal(out.aux_heads["votes"], exit.linear(read.movedim(1, -1)).argmax(-1).flatten(1))
    assert any(own.weight is parameter for parameter in student.head())


def test_sixteen_bit_logits_are_lifted_once():
    """The sum of two terms that nearly cancel has the gradient of the sum, not of terms each rounded to bfloat16."""
    torch.manual_seed(0)
    twins = student(), student()
    images, labels = images_and_labels()
    grads = []
    for twin, weights in zip(twins, [(1000.0, -999.0), (1.0, 0.0)], strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = twin(images)
        assert out.logits.dtype == out.aux_heads["exit"].dtype == torch.float32
        a, b = weights
        (a * F.cross_entropy(out.logits, labels) + b * F.cross_entropy(out.logits, labels)).backward()
        grads.append(twin.network.classifier.weight.grad)
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("upsample", [None, "bilinear", "bicubic"])
@pytest.mark.parametrize("chunk", [1, 64 * 2**20])
def test_votes_are_those_of_the_resized_map(upsample, chunk, monkeypatch):
    monkeypatch.setattr(aux_heads, "CHUNK_BYTES", chunk)
    maps, classifier = torch.randn(5, 6, 4, 3).double(), nn.Linear(6, 20).double()
    votes = DenseVotes(upsample)({"last": maps}, classifier)
    if upsample:
        maps = F.interpolate(maps, scale_factor=2, mode=upsample, align_corners=False)
    expected = [
        [classifier(maps[i, :, h, w]).argmax().item() for h in range(maps.shape[2]) for w in range(maps.shape[3])]
        for i in range(5)
    ]
    assert votes.dtype == torch.int64
    assert votes.tolist() == expected


def test_votes_keep_nothing_for_the_backward_pass():
    maps = torch.randn(2, 6, 4, 4, requires_grad=True)
    classifier = nn.Linear(6, 20)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        votes = DenseVotes()({"last": maps}, classifier)
    assert not votes.requires_grad
    assert packed == []


def test_votes_under_autocast_are_those_in_full_precision():
    maps, classifier = torch.randn(64, 32, 7, 7).bfloat16(), nn.Linear(32, 1000)
    expected = DenseVotes()({"last": maps.float()}, classifier)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        votes = DenseVotes()({"last": maps}, classifier)
        coarse = classifier(maps.movedim(1, -1)).argmax(-1).flatten(1)
    assert torch.equal(votes, expected)
    assert not torch.equal(coarse, expected)  # what it protects from


class LargestBytes(TorchDispatchMode):
    """Sees every tensor that is made, and keeps the size of the largest."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(x.untyped_storage().nbytes() for x in tree_leaves(out) if torch.is_tensor(x))])
        return out


@pytest.mark.parametrize("upsample", [None, "bilinear"])
def test_votes_of_many_classes_stay_small(upsample):
    maps, classifier = torch.randn(64, 4, 7, 7), nn.Linear(4, 10_000)  # 125 MB of logits at once, or 502 MB
    with LargestBytes() as largest:
        votes = DenseVotes(upsample)({"last": maps}, classifier)
    assert votes.shape == (64, 196 if upsample else 49)
    assert largest.bytes <= aux_heads.CHUNK_BYTES


def test_votes_wait_for_nothing():
    """Fake tensors have no numbers to wait for."""
    with FakeTensorMode():
        out = DenseVotes("bicubic")({"last": torch.randn(300, 6, 7, 7)}, nn.Linear(6, 1000))
    assert out.shape == (300, 196)


# ---- student


def test_outputs():
    model = student()
    images, labels = images_and_labels()
    out = model(images)
    assert out.logits.shape == out.aux_heads["exit"].shape == (8, 5)
    assert out.features.shape == (8, 16)
    assert out.aux_heads["votes"].shape == (8, 25)
    assert torch.equal(out.logits, model.network(images))
    objective(out, labels).backward()
    assert all(p.grad is not None for p in model.parameters())


def gradients_on_a_rank(results, static):
    model = student()
    warnings.simplefilter("ignore", FutureWarning)  # of torch 2.15, about the name of broadcast_buffers
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, static_graph=static)
    images, labels = images_and_labels()
    part = slice(4 * dist.rank(), 4 * dist.rank() + 4)
    for _ in range(2):  # DDP arranges its buckets anew after the first step
        model.zero_grad()
        out = wrapped(images[part])
        objective(out, labels[part]).backward()
    assert out.aux_heads["votes"].shape == (4, 25)
    torch.save([p.grad for p in model.parameters()], results[dist.rank()])


@pytest.mark.ranks
@pytest.mark.parametrize("static", [False, True])
def test_ddp_sees_every_parameter(tmp_path, static, on_ranks):
    results = [tmp_path / f"gradients{r}.pt" for r in range(2)]
    on_ranks(2, gradients_on_a_rank, results, static)
    model = student()
    images, labels = images_and_labels()
    objective(model(images), labels).backward()
    gradients = [torch.load(file) for file in results]
    for first, second, parameter in zip(*gradients, model.parameters(), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, parameter.grad)


def test_compiles():
    images, labels = images_and_labels()
    eager, compiled = student(), student()
    compiled.compile(fullgraph=True)
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    expected, out = eager(images), compiled(images)
    torch.testing.assert_close(out.logits, expected.logits)
    assert torch.equal(out.aux_heads["votes"], expected.aux_heads["votes"])
    objective(expected, labels).backward()
    objective(out, labels).backward()
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
