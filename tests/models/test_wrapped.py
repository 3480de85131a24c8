"""Modules that others wrote: the same numbers, stages, votes, copies, compilation, resume, and every sentence."""

import copy
import re

import pytest
import torch
import torchvision
import yaml
from torch import nn

from lsdali.build import build
from lsdali.errors import SharedError, UserError
from lsdali.events import Events
from lsdali.models import MODELS, ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes, StageHead
from lsdali.models.checkpoint_net import open_network
from lsdali.models.checks import check_image_size
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import FileWeights, load_weights
from lsdali.models.student import Student
from lsdali.models.wrapped import as_network
from lsdali.recipe import Recipe
from lsdali.state import checkpoint
from lsdali.state.checkpoint import Checkpoints
from lsdali.testing import small
from lsdali.testing.contract import Interrupted, check_resume, stop_after
from tests.harness import ROOT, equal, make_images, tiny
from tests.models.foreign import FOREIGN, HandWritten, Idle, Several, seeded

SHAPES = {
    "their_resnet": ("fc", {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}, True),
    "their_convnext": ("classifier.2", {"features.1": 16, "features.3": 32}, False),
    "their_vit": ("head", {}, False),
    "my_own": ("to_classes", {"blocks.0": 16, "blocks.1": 24, "blocks.2": 32}, True),
    "my_scaled": (None, {"inner.blocks.0": 16, "inner.blocks.1": 24, "inner.blocks.2": 32}, False),
}


def side(name):
    return 16 if name == "their_vit" else 64


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr("lsdali.models.discover.SIDES", (64, 224, 32, 16))


@pytest.fixture(autouse=True)
def _registered(monkeypatch, sixteen):
    for name, make in FOREIGN.items():
        monkeypatch.setitem(MODELS, name, make)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_numbers_and_what_was_found(name):
    theirs = seeded(FOREIGN[name], 7).eval()
    before = weights_digest(theirs)
    network = as_network(copy.deepcopy(theirs), 7, name=name).eval()
    head, channels, positionwise = SHAPES[name]
    assert (network.channels, network.positionwise, network.width > 0) == (channels, positionwise, head is not None)
    images = torch.randn(3, 3, side(name), side(name))
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=0, atol=1e-6)
    assert network.aliases.keys() == theirs.state_dict().keys()
    back = {key: network.state_dict()[ours] for key, ours in network.aliases.items()}
    assert weights_digest(back) == before
    assert network.notes[0].startswith(f"'{name}': its classifier is {head}" if head else f"'{name}': no classifier")


@pytest.mark.parametrize("name", ["their_resnet", "my_own"])
def test_positions_vote_with_the_modules_own_classifier(name):
    theirs = seeded(FOREIGN[name], 7).eval()
    network = as_network(copy.deepcopy(theirs), 7).eval()
    layer = theirs.get_submodule(SHAPES[name][0])
    with torch.no_grad():
        maps, features, _ = network.parts(torch.randn(2, 3, 64, 64))
        votes = DenseVotes()(maps, network.readout)
        last = list(maps.values())[-1]
        assert torch.allclose(features, last.mean((2, 3)), atol=1e-5)
        for place in range(last.shape[2] * last.shape[3]):
            row, column = divmod(place, last.shape[3])
            assert torch.equal(votes[:, place], layer(last[:, :, row, column]).argmax(1))


@pytest.mark.parametrize("name", SHAPES)
def test_copies_gradients_layout_and_one_graph(name):
    torch._dynamo.reset()
    network = as_network(seeded(FOREIGN[name], 7), 7)
    heads = {"votes": DenseVotes()} if network.positionwise else {}
    if network.channels:
        stage, width = next(iter(network.channels.items()))
        heads["exit"] = StageHead(stage, width, 7)
    student = Student(network, heads).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(student)
    images = torch.randn(4, 3, side(name), side(name)).contiguous(memory_format=torch.channels_last)
    out = student(images)
    torch.stack([x.sum() for x in (out.logits, *out.aux_heads.values()) if x.requires_grad]).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in twin.parameters())
    assert student.network._kept is not twin.network._kept
    assert not student.network._kept
    compiled = torch.compile(twin.eval(), backend="eager", fullgraph=True)(images)
    again = twin(images)
    assert torch.equal(compiled.logits, again.logits)
    for key, value in again.aux_heads.items():
        assert torch.equal(compiled.aux_heads[key], value), key


def test_names_decide_where_they_are_given():
    network = as_network(seeded(FOREIGN["their_resnet"], 7), 7, stages=["layer2", "layer4"], classifier="fc")
    assert network.channels == {"layer2": 128, "layer4": 512}
    config = ModelConfig(name="torchvision/resnet18", stages=("layer3",))
    assert build_network(config, 5).channels == {"layer3": 256}
    assert "fc.weight" in build_network(config, 5).aliases


def test_torchvision_by_name():
    """Those that are taken apart here stay so; others are wrapped."""
    torch.manual_seed(0)
    apart = build_network(ModelConfig(name="torchvision/resnet18"), 5)
    torch.manual_seed(0)
    assert weights_digest(apart) == weights_digest(build_network(ModelConfig(name="resnet18"), 5))
    network = build_network(ModelConfig(name="torchvision/regnet_y_400mf"), 5)
    assert network.channels == {f"trunk_output.block{n}": c for n, c in ((1, 48), (2, 104), (3, 208), (4, 440))}
    assert network.positionwise
    with pytest.raises(ValueError, match="no torchvision model 'regnet_y_401mf'; did you mean 'regnet_y_400mf'"):
        ModelConfig(name="torchvision/regnet_y_401mf")


def test_weights_of_a_torchvision_file_fit_a_wrapped_module(tmp_path):
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    network, said = build_network(ModelConfig(name="torchvision/shufflenet_v2_x0_5"), 5), []
    load_weights(network, "x", FileWeights(path=str(tmp_path / "w.pt")), said.append)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), theirs(images))
    assert said == []


def test_a_classifier_of_single_positions_is_a_linear_one():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnetv2_18", num_classes=7).eval()
    network = as_network(copy.deepcopy(theirs), 7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=0, atol=1e-5)
    assert network.classifier.weight.shape == (7, 512)


def test_other_classes_get_a_new_classifier():
    theirs = seeded(HandWritten, 9)
    network = as_network(copy.deepcopy(theirs), 5, name="mine")
    assert network.notes[1] == "'mine' knows 9 classes: the classifier for 5 begins untrained"
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert torch.equal(network.inner.blocks[0][0].weight, theirs.blocks[0][0].weight)


def test_modes_and_random_numbers_are_left_alone():
    module = seeded(HandWritten, 5).train()
    module.blocks[1].eval()
    state = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    network = as_network(module, 5)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert [network.inner.training, network.inner.blocks[1].training] == [True, False]
    assert all(torch.equal(state[key], network.state_dict()[ours]) for key, ours in network.aliases.items())


# ---- sentences


@pytest.mark.parametrize(
    ("module", "options", "sentence"),
    [
        (Several(lambda x: (x, x)), {}, "'m' gives a tuple for 2 images, where logits [2, K] are needed"),
        (
            Several(lambda x: x[..., None]),
            {},
            "'m' gives a tensor [2, 5, 1] for 2 images, where logits [2, K] are needed",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(7, 5)),
            {},
            "'m' takes no images [2, 3, N, N] with N of 64, 224, 32, 16; at 224 it says: mat1 and mat2 shapes cannot "
            "be multiplied (2x150528 and 7x5)",
        ),
        (
            FOREIGN["my_scaled"](9),
            {},
            "'m' gives 9 logits for 5 classes, and its classifier was not found: name it (model.classifier: fc)",
        ),
        (
            FOREIGN["my_scaled"](5),
            {"classifier": "inner.to_classes"},
            "model.classifier: what 'inner.to_classes' gives is not what 'm' returns",
        ),
        (
            HandWritten(5),
            {"classifier": "fc"},
            "model.classifier 'fc': there is no such part in 'm'; its last linear layers are to_classes",
        ),
        (
            HandWritten(5),
            {"classifier": "drop"},
            "model.classifier 'drop': it is not a linear layer in 'm'; its last linear layers are to_classes",
        ),
        (
            FOREIGN["their_resnet"](5),
            {"stages": ["layer9"]},
            "model.stages: 'layer9' is no part of 'm' that gives one map [B, C, H, W]; such parts are "
            "conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool",
        ),
        (
            FOREIGN["their_resnet"](5),
            {"stages": ["layer2", "layer1"]},
            "model.stages: 'm' runs them in another order: layer1, layer2",
        ),
    ],
)
def test_sentences(module, options, sentence):
    with pytest.raises(UserError) as caught:
        as_network(module, 5, name="m", **options)
    assert str(caught.value) == sentence


def test_parts_of_our_own_networks_are_not_named():
    with pytest.raises(UserError) as caught:
        build_network(ModelConfig(name="resnet20", classifier="fc"), 5)
    assert str(caught.value) == "model.stages and model.classifier are known for 'resnet20': leave them out"


def test_sizes_that_a_module_does_not_take():
    network = build_network(ModelConfig(name="their_vit"), 5)
    check_image_size(network, "their_vit", [16])
    with pytest.raises(UserError) as caught:
        check_image_size(network, "their_vit", [16, 32])
    assert str(caught.value) == (
        "'their_vit' does not take images of 32 px (Input height (32) doesn't match model (16).): "
        "set data.train.size and data.eval.size"
    )


# ---- training


def trainer_for(method, base, folder, name):
    tree = tiny(method, base / "images", folder, model={"name": name}, epochs=1, save={"every_steps": 1})
    recipe = Recipe.model_validate(tree)
    return build(recipe, folder, torch.device("cpu"), Checkpoints(folder / "checkpoints", 9, print), Events([]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("wrapped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        make_images(base / "images", train=6, val=1)
        yield base


def stopped_and_resumed(method, name, base, folder):
    """The last states of a whole run, and of one that stops after two of three steps and goes on."""
    whole = trainer_for(method, base, folder / "whole", name)
    whole.run()
    stopped = trainer_for(method, base, folder / "stopped", name)
    stop_after(stopped, 2)
    with pytest.raises(Interrupted):
        stopped.run()
    resumed = trainer_for(method, base, folder / "resumed", name)
    resumed.restore(copy.deepcopy(stopped.checkpoints.newest()["parts"]))
    assert resumed.clock.step == 2
    resumed.run()
    for part in ("student", "optimizer", "buffers", "rng", "method"):
        assert equal(whole.parts[part].state_dict(), resumed.parts[part].state_dict()), part
    return whole


ZLS = {"name": "zls"}
BAKE = {"name": "bake"}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("their_resnet", ZLS),
        ("their_convnext", BAKE),
        ("their_vit", BAKE),
        ("my_own", ZLS),
        ("my_scaled", {"name": "ls", "smoothing": 0.1}),
    ],
)
def test_a_stopped_run_goes_on_exactly(name, method, base, tmp_path):
    trainer = stopped_and_resumed(method, name, base, tmp_path)
    content = checkpoint.read(tmp_path / "whole/checkpoints/best.pt")
    network = open_network(content, "it").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = trainer.student.eval()(images.contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def resume_on_ranks(name, base, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, name, FOREIGN[name])
        stopped_and_resumed(ZLS, name, base, folder)


@pytest.mark.ranks
def test_two_ranks_go_on_exactly(base, tmp_path, on_ranks):
    on_ranks(2, resume_on_ranks, "my_own", base, tmp_path)


@pytest.mark.parametrize(
    ("name", "method", "sentence"),
    [
        ("their_vit", ZLS, "the method 'zls' reads maps of images between stages, and 'their_vit' has none"),
        (
            "their_convnext",
            ZLS,
            "the method 'zls' classifies single positions of the last map, and the classifier of 'their_convnext' "
            "cannot read them",
        ),
        (
            "my_scaled",
            BAKE,
            "the method 'bake' reads the features before the classifier, and that of 'my_scaled' was not found: "
            "name it (model.classifier)",
        ),
        (
            "my_scaled",
            {"name": "zls", "ranking": "friends"},
            "the method 'zls' reads the features before the classifier, and that of 'my_scaled' was not found: "
            "name it (model.classifier)",
        ),
    ],
)
def test_methods_that_need_more_refuse(name, method, sentence, base, tmp_path):
    with pytest.raises(SharedError) as caught:
        trainer_for(method, base, tmp_path, name)
    assert str(caught.value) == sentence


def idle_on_ranks(base, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "idle", Idle)
        with pytest.raises(SharedError) as caught:
            trainer_for({"name": "ce"}, base, folder, "idle")
    assert str(caught.value) == (
        "no output depends on network.inner.forgotten.weight, network.inner.forgotten.bias of 'idle': on several "
        "processes every trained parameter must be used; remove it from the module, or set its requires_grad to False"
    )


@pytest.mark.ranks
def test_two_ranks_refuse_parameters_that_nobody_uses(base, tmp_path, on_ranks):
    on_ranks(2, idle_on_ranks, base, tmp_path)


def test_the_page_on_networks_names_networks():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    models = [yaml.safe_load(block)["model"] for block in blocks if block.startswith("model:")]
    assert len(models) >= 3
    for model in models:
        ModelConfig.model_validate(model)


def test_methods_with_exits_on_stages_whose_names_have_dots(folder, place, monkeypatch):
    """Stages of a list of blocks are called blocks.0, blocks.1 ..., which no module may be called."""
    monkeypatch.setitem(MODELS, "my_own", FOREIGN["my_own"])
    for config in ({"name": "exits"}, {"name": "zls", "deep": {"exits": 1}}):
        check_resume(config, place / config["name"], {"model": {"name": "my_own"}})
    trainer = small.trainer_for({"name": "exits"}, place / "names", model={"name": "my_own"})
    images = next(trainer.train.epoch(0)).images
    assert set(trainer.student(images).aux_heads) == {"exit_blocks.0", "exit_blocks.1"}
