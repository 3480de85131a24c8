"""Windows: the same distribution and the same integers as torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvf

from lsdali.data.sampling.crops import CROP_COLUMNS, center_crop, crop_uniforms, flips, pad_crop, random_resized_crop

INDEX = np.arange(4000)


@pytest.mark.parametrize("size", [(500, 375), (90, 400), (33, 32)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.8, 1.25))])
def test_random_resized_crop_has_torchvisions_distribution(size, scale, ratio):
    width, height = size
    sizes = np.tile(np.array(size, np.int32), (len(INDEX), 1))
    start, shape = random_resized_crop(crop_uniforms(0, 0, INDEX), sizes, scale, ratio)
    ours = np.hstack([start, shape])
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in INDEX])
    assert (start >= 0).all()
    assert (start + shape <= [height, width]).all()
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.unique(np.concatenate([a, b]))
        gap = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / len(a)
        assert gap < 1.95 * (2 / len(a)) ** 0.5, column  # Kolmogorov-Smirnov at 0.001


def test_a_window_that_never_fits_falls_back_to_torchvisions():
    sizes = np.array([[10, 1000], [1000, 10], [50, 50]], np.int32)
    u = np.full((3, CROP_COLUMNS), 0.999)
    start, shape = random_resized_crop(u, sizes, (1.0, 1.0), (3 / 4, 4 / 3))
    for k in range(2):
        width, height = sizes[k]
        expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        assert (*start[k], *shape[k]) == expected
    assert shape[2].tolist() == [50, 50]


def test_pad_crop_covers_every_place_evenly():
    sizes = np.tile(np.array([34, 32], np.int32), (len(INDEX), 1))
    start = pad_crop(crop_uniforms(0, 0, INDEX), sizes, 32, 4)
    for column, places in ((0, 9), (1, 11)):
        values, counts = np.unique(start[:, column], return_counts=True)
        assert values.tolist() == list(range(-4, places - 4))
        assert counts.min() > 0.8 * len(INDEX) / places


def test_flips_follow_their_probability_and_are_not_tied_to_the_window():
    u = crop_uniforms(0, 0, INDEX)
    assert flips(0, 0, INDEX, 0.0).sum() == 0
    assert flips(0, 0, INDEX, 1.0).all()
    half = flips(0, 0, INDEX, 0.5)
    assert abs(half.mean() - 0.5) < 0.03
    assert all(abs(np.corrcoef(half, u[:, k])[0, 1]) < 0.06 for k in range(CROP_COLUMNS))


@pytest.mark.parametrize(("resize", "side"), [(256, 224), (36, 32), (32, 32), (64, 33)])
def test_center_crop_has_torchvisions_integers(resize, side):
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 400, (300, 2)).astype(np.int32)
    w = center_crop(sizes, resize, side)
    for k, (width, height) in enumerate(sizes.tolist()):
        new_h, new_w = tvf._compute_resized_output_size((height, width), [resize])
        top, left = round((new_h - side) / 2.0), round((new_w - side) / 2.0)
        low, high = w.low[k] + w.start[k], w.high[k] + w.start[k]
        assert np.allclose(low, [top * height / new_h, left * width / new_w])
        assert np.allclose(high, [(top + side) * height / new_h, (left + side) * width / new_w])
        assert (w.start[k] >= 0).all()
        assert (w.start[k] + w.shape[k] <= [height, width]).all()
        assert (w.start[k] <= low).all()
        assert (w.high[k] <= w.shape[k] + 1e-9).all()
