"""Augmentations: the same bits on any ranks and from any start, the operations torchvision has, the right odds."""

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.auto_aug.auto_augment import get_image_net_policy, get_reduced_cifar10_policy
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline import dali_ops as effects
from lsdali.data.pipeline.dali_ops.policies import tables
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.augment import AUGMENTATIONS, draw_choices
from lsdali.data.sampling.augment.erasing import RandomErasing
from lsdali.data.sampling.augment.photometric import PCA_VALUES, PCA_VECTORS, ColorJitter, Grayscale, Lighting, Rotation
from lsdali.data.sampling.augment.policies import AutoAugment, RandAugment, TrivialAugment
from lsdali.data.sets.catalog import PadCrop, RandomResizedCrop

SIDE = 64


def loader(index, config, batch=12, seed=3):
    return TrainLoader(index, config, LoaderOptions(PerEpoch(batch), seed, torch.device("cpu")))


def pixels(batches) -> dict[int, torch.Tensor]:
    return {i: x.clone() for b in batches for i, x in zip(b.index.tolist(), b.images)}


def often(kind):
    """The augmentation as it is by default, but on most of the images."""
    return kind(probability=0.7) if "probability" in kind.model_fields else kind()


EVERY = [
    *([often(kind)] for kind in AUGMENTATIONS.values()),
    [RandAugment(n=1, m=20), ColorJitter(), Lighting(), Grayscale(), Rotation(), RandomErasing()],
]


@pytest.mark.parametrize("augment", EVERY, ids=lambda a: "+".join(x.name for x in a))
def test_ranks_and_a_change_of_ranks_in_mid_epoch_give_the_same_bits(tree, plain, as_rank, augment):
    config = plain(tree(each=18, side=32), train=RandomResizedCrop(size=24, augment=augment))
    index = open_index(config, "train")
    whole = pixels(loader(index, config).epoch(3))  # epoch 1
    assert len(whole) == 36
    bare = plain(index.root, train=RandomResizedCrop(size=24))
    without = pixels(loader(index, bare).epoch(3))
    assert any(not torch.equal(whole[i], without[i]) for i in whole)
    union: dict[int, torch.Tensor] = {}
    for rank in range(2):  # one step on two ranks
        as_rank(rank, 2)
        stream = loader(index, config).epoch(3)
        union |= pixels([next(stream)])
    for rank in range(3):  # the others on three
        as_rank(rank, 3)
        union |= pixels(loader(index, config).epoch(4))
    assert union.keys() == whole.keys()
    assert all(torch.equal(union[i], whole[i]) for i in whole)


def test_seeds_epochs_and_places_in_the_list_draw_differently():
    key = np.arange(500)
    first = draw_choices([Rotation(), Rotation()], 0, 0, key, SIDE)
    for other in (
        draw_choices([Rotation()], 1, 0, key, SIDE)[0],
        draw_choices([Rotation()], 0, 1, key, SIDE)[0],
        first[1],
    ):
        assert abs(np.corrcoef(first[0], other)[0, 1]) < 0.15
    assert np.array_equal(draw_choices([Rotation()], 0, 0, key[::-1], SIDE)[0], first[0][::-1])


def test_the_padded_crop_is_augmented_too(tree, plain):
    root = tree(each=18, side=32)
    plainly = plain(root, train=PadCrop(size=32))
    index = open_index(plainly, "train")
    gray = plain(root, train=PadCrop(size=32, augment=[Grayscale(probability=1.0)]))
    a, b = (next(loader(index, c).epoch(0)).images for c in (plainly, gray))
    expected = tvf.rgb_to_grayscale(a, 3)
    assert (b - expected).abs().max() < 2.5 / 255
    assert (a - expected).abs().max() > 0.1


# ---- the operations


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """[6, SIDE, SIDE, 3] waves of every colour."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    a, b, c = rng.uniform(0.03, 0.25, (3, 6, 1, 1, 3))
    waves = 128 + 90 * np.sin(a * x[..., None] + b * y[..., None]) + 40 * np.cos(c * (x - y)[..., None])
    return np.clip(waves, 0, 255).astype(np.uint8)


def changed(images, config, *choices) -> np.ndarray:
    """The images after one augmentation with the given choices, each [n, ..], or [..] the same for all."""
    rows = tuple(
        np.ascontiguousarray(
            c if np.shape(c)[:1] == (len(images),) else np.broadcast_to(c, (len(images), *np.shape(c)))
        )
        for c in choices
    )

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None, enable_conditionals=True)
    def graph():
        x = fn.external_source(source=lambda i: list(images), batch=True, layout="HWC", batch_info=True)
        c = fn.external_source(source=lambda i: rows, num_outputs=len(rows), batch=True, batch_info=True)
        return effects.add_ops(x, [config], list(c), SIDE)

    return np.stack([np.array(x) for x in graph().run()[0].as_cpu()]).astype(np.int64)


def planes(images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def difference(ours, theirs: torch.Tensor, margin=0) -> np.ndarray:
    d = np.abs(ours - theirs.permute(0, 2, 3, 1).numpy().astype(np.int64))
    return d[:, margin : SIDE - margin, margin : SIDE - margin]


F = np.float32


def test_colour_jitter_is_torchvision_s_but_for_hue(images):
    x = planes(images)
    jitter = ColorJitter()
    for v in (0.5, 1.5):
        assert difference(changed(images, jitter, F(v), F(1), F(1), F(0)), tvf.adjust_brightness(x, v)).max() <= 1
        assert difference(changed(images, jitter, F(1), F(v), F(1), F(0)), tvf.adjust_contrast(x, v)).max() <= 1
        assert difference(changed(images, jitter, F(1), F(1), F(v), F(0)), tvf.adjust_saturation(x, v)).max() <= 1
    all_three = tvf.adjust_saturation(tvf.adjust_contrast(tvf.adjust_brightness(x, 1.3), 0.7), 1.2)
    assert difference(changed(images, jitter, F(1.3), F(0.7), F(1.2), F(0)), all_three).max() <= 3
    assert difference(changed(images, jitter, F(1), F(1), F(1), F(0)), x).max() == 0
    # A turn in YIQ keeps the gray value, as a turn in HSV does not: related, not the same.
    turned = changed(images, jitter, F(1), F(1), F(1), F(36))
    assert (
        0 < difference(turned, tvf.adjust_hue(x, 0.1)).mean() < difference(turned, tvf.adjust_hue(x, -0.1)).mean() / 2
    )


def test_grayscale_and_rotation_are_torchvision_s(images):
    x = planes(images)
    assert difference(changed(images, Grayscale(), F(0)), tvf.rgb_to_grayscale(x, 3)).max() <= 2
    assert difference(changed(images, Grayscale(), F(1)), x).max() == 0
    for angle in (12.0, -40.0):
        there = tvf.rotate(x, angle, interpolation=InterpolationMode.BILINEAR, fill=7)
        d = difference(changed(images, Rotation(fill=7), F(angle)), there)
        assert (d > 1).mean() < 0.04  # the cut edge: DALI blends it with the fill, torchvision does not
        assert d[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].max() <= 1
    assert difference(changed(images, Rotation(), F(0)), x).max() == 0


def test_lighting_adds_the_components(images):
    factors = np.array([0.12, -0.2, 0.07])
    shift = 255 * np.array([sum(PCA_VECTORS[c, k] * PCA_VALUES[k] * factors[k] for k in range(3)) for c in range(3)])
    ours = changed(images, Lighting(), shift.astype(F)[None, None])
    assert np.abs(ours - np.clip(images + shift, 0, 255)).max() <= 0.51
    (many,) = draw_choices([Lighting(std=0.1)], 0, 0, np.arange(40_000), SIDE)
    back = many[:, 0, 0] / 255 @ np.linalg.inv((PCA_VECTORS * PCA_VALUES).T)
    assert np.abs(back.mean(0)).max() < 0.003
    assert back.std(0) == pytest.approx(0.1, rel=0.02)
    assert np.abs(np.corrcoef(back.T) - np.eye(3)).max() < 0.02


def affine(x, shift=(0.0, 0.0), shear=(0.0, 0.0)):
    degrees = [float(np.degrees(np.arctan(-s))) for s in shear]
    more = {"interpolation": InterpolationMode.BILINEAR, "fill": 128, "center": [0, 0]}
    return tvf.affine(x, 0.0, list(shift), 1.0, degrees, **more)


M = 12 / 30
THEIRS = {
    "translate_x": lambda x, s: affine(x, shift=(s * M * SIDE * 150 / 331, 0)),
    "translate_y": lambda x, s: affine(x, shift=(0, s * M * SIDE * 150 / 331)),
    "shear_x": lambda x, s: affine(x, shear=(s * M * 0.3, 0)),
    "shear_y": lambda x, s: affine(x, shear=(0, s * M * 0.3)),
    "rotate": lambda x, s: tvf.rotate(x, s * M * 30, interpolation=InterpolationMode.BILINEAR, fill=128),
    "brightness": lambda x, s: tvf.adjust_brightness(x, 1 + s * M * 0.9),
    "contrast": lambda x, s: tvf.adjust_contrast(x, 1 + s * M * 0.9),
    "color": lambda x, s: tvf.adjust_saturation(x, 1 + s * M * 0.9),
    "sharpness": lambda x, s: tvf.adjust_sharpness(x, 1 + s * M * 0.9),
    "posterize": lambda x, s: tvf.posterize(x, 8 - round(4 * M)),
    "solarize": lambda x, s: tvf.solarize(x, 256 * (1 - M)),
    "equalize": lambda x, s: tvf.equalize(x),
    "auto_contrast": lambda x, s: tvf.autocontrast(x),
    "identity": lambda x, s: x,
}


def test_every_operation_of_rand_augment_is_torchvision_s(images):
    batch = np.repeat(images[:2], 28, 0)
    operation = np.tile(np.arange(14, dtype=np.int32), 4)
    sign = np.tile(np.repeat(np.arange(2, dtype=np.int32), 14), 2)

    @pipeline_def(batch_size=56, num_threads=1, device_id=None, enable_conditionals=True)
    def graph():
        x = fn.external_source(source=lambda i: list(batch), batch=True, layout="HWC", batch_info=True)
        c = fn.external_source(
            source=lambda i: (operation[:, None], sign[:, None]), num_outputs=2, batch=True, batch_info=True
        )
        return effects.add_ops(x, [RandAugment(n=1, m=12)], list(c), SIDE)

    ours = np.stack([np.array(x) for x in graph().run()[0].as_cpu()]).astype(np.int64)
    for k, name in enumerate(THEIRS):
        for s in (0, 1):
            rows = (operation == k) & (sign == s)
            d = difference(ours[rows], THEIRS[name](planes(images[:2]), 1 - 2 * s), margin=1)
            if name == "equalize":  # OpenCV's formula, not PIL's
                assert d.mean() < 12, name
            elif name in ("translate_x", "translate_y", "shear_x", "shear_y", "rotate"):
                assert (d > 1).mean() < 0.04, (name, s)  # the cut edge again
            else:
                assert d.max() <= 2, (name, s)


def test_trivial_augment_has_torchvision_s_wide_ranges(images):
    x = planes(images[:2])
    wide = {
        0: lambda s: affine(x, shift=(s * 32, 0)),
        4: lambda s: tvf.rotate(x, s * 135, interpolation=InterpolationMode.BILINEAR, fill=128),
        2: lambda s: affine(x, shear=(s * 0.99, 0)),
        5: lambda s: tvf.adjust_brightness(x, 1 + s * 0.99),
        7: lambda s: tvf.adjust_saturation(x, 1 + s * 0.99),
        9: lambda s: tvf.posterize(x, 2),
        10: lambda s: tvf.invert(x),
    }
    operation = np.repeat(np.array(list(wide), np.int32), 4)
    sign = np.tile(np.array([0, 0, 1, 1], np.int32), len(wide))
    magnitude = np.full_like(sign, 30)
    batch = np.concatenate([images[:2]] * 2 * len(wide))
    ours = changed(batch, TrivialAugment(), operation, magnitude, sign)
    for k, theirs in wide.items():
        for s in (0, 1):
            d = difference(ours[(operation == k) & (sign == s)], theirs(1 - 2 * s))
            assert (d > 2).mean() < 0.04, (k, s)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("augment", EVERY, ids=lambda a: "+".join(x.name for x in a))
def test_gpu_and_cpu_give_nearly_the_same(tree, plain, augment):
    config = plain(tree(each=18, side=32), train=RandomResizedCrop(size=24, augment=augment))
    index = open_index(config, "train")
    here = next(loader(index, config, batch=36).epoch(0))
    cuda = TrainLoader(index, config, LoaderOptions(PerEpoch(36), 3, torch.device("cuda", 0)))
    there = next(cuda.epoch(0))
    assert there.index.tolist() == here.index.tolist()
    assert (there.images.cpu() - here.images).abs().mean() * 255 < 2


# ---- the odds


N = 20_000


def chosen(config):
    return draw_choices([config], 0, 0, np.arange(N), SIDE)


def test_colour_factors_are_uniform_and_as_often_as_asked():
    jitter = ColorJitter(brightness=0.4, contrast=1.5, saturation=0, hue=0.1, probability=0.8)
    brightness, contrast, saturation, hue = chosen(jitter)
    on = brightness != 1
    assert on.mean() == pytest.approx(0.8, abs=0.01)
    for factor, low, high in ((brightness, 0.6, 1.4), (contrast, 0, 2.5), (hue, -36, 36)):
        histogram = np.histogram(factor[on], 8, (low, high))[0]
        assert histogram.sum() == on.sum()
        assert np.abs(histogram / on.sum() * 8 - 1).max() < 0.1
    assert (saturation == 1).all()
    assert (hue[~on] == 0).all()


def test_operations_magnitudes_and_signs_are_uniform():
    operation, sign = chosen(RandAugment(n=3))
    assert operation.shape == sign.shape == (N, 3)
    for column in range(3):
        assert np.abs(np.bincount(operation[:, column], minlength=14) / N * 14 - 1).max() < 0.1
        assert sign[:, column].mean() == pytest.approx(0.5, abs=0.015)
    assert abs(np.corrcoef(operation[:, 0], operation[:, 1])[0, 1]) < 0.03
    operation, magnitude, sign = chosen(TrivialAugment())
    assert np.abs(np.bincount(magnitude, minlength=31) / N * 31 - 1).max() < 0.15
    assert (operation.max(), magnitude.max(), sign.max()) == (13, 30, 1)
    pair, chance, sign = chosen(AutoAugment())
    assert np.abs(np.bincount(pair, minlength=25) / N * 25 - 1).max() < 0.15
    assert chance.min() >= 0
    assert chance.max() < 1


@pytest.mark.parametrize("policy", [get_image_net_policy, get_reduced_cifar10_policy])
def test_auto_augment_s_tables_are_the_policy(policy):
    pairs = policy(max_translate_abs=9).sub_policies
    suite, operation, chance, magnitude = tables(pairs)
    assert suite[0].name == "identity"
    for p, pair in enumerate(pairs):
        for k, (effect, share, level) in enumerate(pair):
            row = (suite[operation[p, k]].name, chance[p, k], magnitude[p, k])
            assert row == (effect.name, F(share), level or 0)
        assert len(pair) == 2 or operation[p, 1] == 0


def test_auto_augment_takes_an_operation_with_its_chance(images):
    pairs = get_image_net_policy().sub_policies
    one, two = 19, 16
    assert [e[0].name for e in pairs[one]] == ["equalize"]
    assert [e[0].name for e in pairs[two]] == ["solarize"]
    zeros, never = np.zeros(2, np.int32), np.array([0.9, 0], F)
    auto = AutoAugment()
    assert difference(changed(images, auto, np.int32(one), never, zeros), planes(images)).max() == 0
    solarized = changed(images, auto, np.int32(two), np.array([0.5, 0], F), zeros)
    assert difference(solarized, tvf.solarize(planes(images), 256 * 0.4)).max() == 0


def test_erased_rectangles(tree, plain):
    anchor, shape = chosen(RandomErasing(probability=0.3, scale=(0.1, 0.2), ratio=(0.5, 2.0)))
    on = shape[:, 0] > 0
    assert on.mean() == pytest.approx(0.3, abs=0.01)
    assert ((anchor >= 0) & (anchor + shape <= SIDE)).all()
    area = shape[on].prod(1) / SIDE**2
    assert area.min() > 0.09
    assert area.max() < 0.21
    assert area.mean() == pytest.approx(0.15, abs=0.003)
    aspect = np.log(shape[on, 0] / shape[on, 1])
    assert np.abs(aspect).max() < np.log(2.2)
    assert aspect.mean() == pytest.approx(0, abs=0.02)
    erasing = RandomErasing(probability=1.0, value=0.5)
    config = plain(tree(each=6, side=32), train=RandomResizedCrop(size=32, augment=[erasing]), std=(0.5,) * 3)
    index = open_index(config, "train")
    bare = config.model_copy(update={"train": RandomResizedCrop(size=32)})
    with_, without = (next(loader(index, c, batch=12).epoch(0)) for c in (config, bare))
    corner, box = draw_choices([erasing], 3, 0, with_.index.numpy(), 32)
    for k, (a, b) in enumerate(zip(with_.images, without.images)):
        expected = tvf.erase(b, *(int(n) for n in (*corner[k], *box[k])), torch.tensor(0.5))
        assert torch.equal(a, expected)
        assert not torch.equal(a, b)
    half = TrainLoader(index, config, LoaderOptions(PerEpoch(12), 3, torch.device("cpu"), half=True))
    assert torch.allclose(next(half.epoch(0)).images.float(), with_.images, atol=4e-3)


@pytest.mark.parametrize(
    ("augment", "problem"),
    [
        ([RandomErasing(), Grayscale()], "random_erasing works on the normalised image: put it at the end of augment"),
        ([Grayscale()] * 91, "at most 90"),
    ],
)
def test_impossible_lists_are_refused(augment, problem):
    with pytest.raises(ValueError, match=problem):
        RandomResizedCrop(size=8, augment=augment)


def test_ps_kd_s_colour_transforms():
    """P16 of its code: jitter towards black, the mean gray and the own gray by 0.25; lighting with fixed draws."""
    image = np.array([[[0.1, 0.9], [0.5, 0.3]], [[0.2, 0.4], [0.6, 0.8]], [[0.7, 0.1], [0.0, 1.0]]]).transpose(1, 2, 0)
    tile = np.rint(255 * np.tile(image, (1, SIDE // 2, SIDE // 2, 1))).astype(np.uint8)
    published = {
        (F(0.75), F(1), F(1)): [0.075, 0.15, 0.525, 0.675, 0.3, 0.075, 0.375, 0.45, 0.0, 0.225, 0.6, 0.75],
        (F(1), F(0.75), F(1)): [
            *(0.1948375, 0.2698375, 0.6448375, 0.7948375, 0.4198375, 0.1948375),
            *(0.4948375, 0.5698375, 0.1198375, 0.3448375, 0.7198375, 0.8698375),
        ],
        (F(1), F(1), F(0.75)): [
            *(0.131775, 0.206775, 0.581775, 0.803825, 0.428825, 0.203825),
            *(0.500425, 0.575425, 0.125425, 0.393325, 0.768325, 0.918325),
        ],
    }
    for factors, expected in published.items():
        ours = changed(tile, ColorJitter(), *factors, F(0))[0, :2, :2]
        assert np.abs(ours - 255 * np.array(expected).reshape(2, 2, 3)).max() < 1.3, factors
    shift = (np.array([0.1, -0.2, 0.05]) * PCA_VALUES) @ PCA_VECTORS.T
    assert shift == pytest.approx([-0.0149571145, -0.01279863, -0.0099862845], abs=1e-12)
