"""Pixels: the index delivered is the image delivered, and crops look as torchvision's do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.crops import crop_uniforms, flips, pad_crop, random_resized_crop
from lsdali.data.sets.catalog import CenterCrop, PadCrop, RandomResizedCrop, SquaredCrop

CPU = torch.device("cpu")


def train_loader(config, batch, seed=0, device=CPU, **more):
    return TrainLoader(open_index(config, "train"), config, LoaderOptions(PerEpoch(batch), seed, device, **more))


def levels(images) -> np.ndarray:
    """[B, 3, H, W] in 0..1 -> [B, H, W, 3] in 0..255."""
    return (images.permute(0, 2, 3, 1) * 255).numpy()


def code(i: int) -> tuple[int, int, int]:
    return i % 6 * 51, i // 6 % 6 * 51, i // 36 * 51


@pytest.fixture
def coloured(tmp_path):
    """216 solid images whose colour says their number, under names of very different lengths."""
    number = 0
    for name in ("a", "b b", "ç" * 60, "d"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(54):
            stem = f"{i:02d}" + ("", " x", "é", "long" * (1 + i))[i % 4]
            Image.new("RGB", (20 + i, 24), code(number)).save(folder / f"{stem}.{('png', 'jpg')[i % 2]}", quality=100)
            number += 1
    val = tmp_path / "val/d"
    val.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(val / "x.png")
    return tmp_path


@pytest.mark.parametrize("crop", [RandomResizedCrop(size=16), PadCrop(size=16, pad=0)])
def test_index_label_and_pixels_belong_together(coloured, plain, crop):
    loader = train_loader(plain(coloured, train=crop), batch=18)
    seen = []
    for step in range(0, 3 * loader.steps_per_epoch.first, loader.steps_per_epoch.first):
        for batch in loader.epoch(step):
            assert batch.valid.all()
            for i, label, image in zip(batch.index.tolist(), batch.labels.tolist(), levels(batch.images)):
                path = loader.index.path(i)
                with Image.open(path) as file:
                    assert np.abs(image - np.asarray(file.convert("RGB"))[0, 0]).max() <= 3, path
                assert loader.index.classes[label] == Path(path).parent.name
                seen.append(i)
    assert sorted(seen) == sorted(3 * list(range(216)))


def test_images_are_a_channels_last_view(tree, plain):
    batch = next(train_loader(plain(tree()), batch=4).epoch(0))
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.dtype == torch.float32
    assert (batch.labels.dtype, batch.index.dtype, batch.valid.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


def test_half_is_the_same_image_in_float16(tree, plain):
    config = plain(tree(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    full, half = (next(train_loader(config, batch=8, half=h).epoch(0)) for h in (False, True))
    assert half.images.dtype == torch.float16
    assert full.index.tolist() == half.index.tolist()
    assert torch.allclose(full.images, half.images.float(), atol=4e-3)


def test_mean_and_std_are_applied(tree, plain):
    root = tree()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    raw = next(train_loader(plain(root), batch=8).epoch(0)).images
    normal = next(train_loader(plain(root, mean=mean, std=std), batch=8).epoch(0)).images
    assert torch.allclose(normal, v2.functional.normalize(raw, list(mean), list(std)), atol=1e-5)


def test_old_batches_are_never_overwritten(tree, plain):
    loader = train_loader(plain(tree()), batch=4)
    epochs = (loader.epoch(start) for start in range(0, 60, 6))
    kept = [(b, b.images.clone(), b.index.clone()) for epoch in epochs for b in epoch]
    loader.close()
    del loader
    assert len(kept) == 60
    for batch, images, index in kept:
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.index, index)


@pytest.fixture
def odd(tmp_path, texture):
    """Images of odd sizes and kinds, in one class."""
    sizes = [(301, 199), (37, 53), (500, 333), (20, 21), (64, 64), (211, 640), (33, 32), (128, 97)]
    for split in ("train", "val"):
        folder = tmp_path / split / "all"
        folder.mkdir(parents=True)
        for k, (width, height) in enumerate(sizes):
            image = texture(width, height, k)
            image.save(folder / f"{k}.jpg", quality=90)
            image.save(folder / f"{k}.png")
        texture(200, 150).convert("L").save(folder / "gray.jpg")
        texture(200, 150).convert("CMYK").save(folder / "cmyk.jpg")
        texture(200, 150).save(folder / "progressive.jpg", progressive=True)
        texture(200, 150).convert("P").save(folder / "palette.png")
        texture(200, 150).save(folder / "webp.webp")
        texture(200, 150).save(folder / "bitmap.bmp")
        texture(200, 150).save(folder / "tagged.tif")
        turned = Image.Exif()
        turned[0x0112] = 6
        texture(200, 150).save(folder / "turned.jpg", exif=turned)
    return tmp_path


def inner(gap: np.ndarray) -> np.ndarray:
    """Without the outermost pixels: past an edge DALI repeats pixels where PIL weighs fewer of them."""
    return gap[1:-1, 1:-1]


def pil(path):
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("size", [32, 160])
def test_train_pixels_agree_with_torchvision(odd, plain, size):
    loader = train_loader(plain(odd, train=RandomResizedCrop(size=size)), batch=24, seed=5)
    gaps = []
    for epoch in range(3):
        batch = next(loader.epoch(epoch))
        i = batch.index.numpy()
        start, shape = random_resized_crop(
            crop_uniforms(5, epoch, i), loader.index.size[i], (0.08, 1.0), (3 / 4, 4 / 3)
        )
        mirror = flips(5, epoch, i, 0.5)
        for k, ours in enumerate(levels(batch.images)):
            theirs = tvf.resized_crop(
                pil(loader.index.path(int(i[k]))),
                *start[k].tolist(),
                *shape[k].tolist(),
                [size, size],
                antialias=True,
            )
            theirs = tvf.horizontal_flip(theirs) if mirror[k] else theirs
            gap = np.abs(ours - np.asarray(theirs, float))
            gaps.append((loader.index.path(int(i[k])), gap.mean(), inner(gap).max(), gap.max()))
    assert max(g[1] for g in gaps) < 0.55, gaps
    assert max(g[2] for g in gaps) < 1.01, gaps
    assert max(g[3] for g in gaps) < 16, gaps


def test_squared_pixels_agree_with_torchvision(odd, plain):
    crop = SquaredCrop(resize=96, size=80)
    loader = train_loader(plain(odd, train=crop), batch=24, seed=5)
    places = []
    for epoch in range(3):
        batch = next(loader.epoch(epoch))
        i = batch.index.numpy()
        mirror = flips(5, epoch, i, 0.5)
        anchor = np.floor(crop_uniforms(5, epoch, i)[:, -2:] * 17).astype(int)
        places += anchor.tolist()
        for k, ours in enumerate(levels(batch.images)):
            whole = tvf.resize(pil(loader.index.path(int(i[k]))), [96, 96])
            theirs = tvf.crop(whole, *anchor[k].tolist(), 80, 80)
            theirs = np.asarray(tvf.horizontal_flip(theirs) if mirror[k] else theirs, float)
            assert np.abs(ours - theirs)[2:-2, 2:-2].max() < 1.01, loader.index.path(int(i[k]))
    assert min(min(p) for p in places) == 0
    assert max(max(p) for p in places) == 16  # torchvision's RandomCrop.get_params draws from 0 to 96 - 80


@pytest.mark.parametrize(
    ("resize", "size", "sides"),
    [(36, 32, "shorter"), (32, 32, "shorter"), (160, 144, "shorter"), (91, 64, "shorter"), (91, 64, "both")],
)
def test_eval_pixels_agree_with_torchvision(odd, plain, resize, size, sides):
    config = plain(odd, eval=CenterCrop(resize=resize, size=size, sides=sides))
    index = open_index(config, "val")
    theirs = v2.Compose([v2.Resize(resize if sides == "shorter" else [resize, resize]), v2.CenterCrop(size)])
    gaps = []
    for batch in EvalLoader(index, config, batch=7, device=CPU, half=False):
        for i, ours in zip(batch.index.tolist(), levels(batch.images)):
            gap = np.abs(ours - np.asarray(theirs(pil(index.path(i))), float))
            gaps.append((index.path(i), gap.mean(), (gap if resize > size else inner(gap)).max(), gap.max()))
    assert max(g[2] for g in gaps) < 1.01, gaps
    assert max(g[3] for g in gaps) < 16, gaps


HOW = [("bicubic", True), ("bilinear", False), ("bicubic", False)]


def keys(away):
    """The cubic of Keys 1981 with a = -0.5."""
    if away < 1:
        return 1.5 * away**3 - 2.5 * away**2 + 1
    return -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2 if away < 2 else 0.0


def sampled(rows, count):
    """[n, ...] -> [count, ...]: four taps of Keys' cubic at each place, the outermost row repeated."""
    out = []
    for k in range(count):
        at = (k + 0.5) * len(rows) / count - 0.5
        near = range(int(np.floor(at)) - 1, int(np.floor(at)) + 3)
        out.append(sum(keys(abs(at - n)) * rows[min(max(n, 0), len(rows) - 1)] for n in near))
    return np.stack(out)


def resized_by_torchvision(image, size, interpolation, antialias):
    """torchvision's float tensors (Pillow clips between rows and columns), or by hand. [H, W, 3].

    torchvision's bicubic filter of tensors is another one (a = -0.75) without antialias.
    """
    mode = v2.InterpolationMode(interpolation)
    if antialias or interpolation == "bilinear":
        resized = tvf.resize(tvf.pil_to_tensor(image).float(), size, mode, antialias=antialias)
        return resized.movedim(0, -1).numpy().astype(float).round().clip(0, 255)
    width, height = tvf.resize(image, size).size
    rows = sampled(np.asarray(image, float), height)
    return sampled(rows.swapaxes(0, 1), width).swapaxes(0, 1).round().clip(0, 255)


@pytest.mark.parametrize(("interpolation", "antialias"), HOW)
@pytest.mark.parametrize(("resize", "size"), [(36, 32), (160, 144)])
def test_eval_pixels_of_other_filters(odd, plain, resize, size, interpolation, antialias):
    crop = CenterCrop(resize=resize, size=size, interpolation=interpolation, antialias=antialias)
    config = plain(odd, eval=crop)
    index = open_index(config, "val")
    gaps = []
    for batch in EvalLoader(index, config, batch=7, device=CPU, half=False):
        for i, ours in zip(batch.index.tolist(), levels(batch.images)):
            whole = resized_by_torchvision(pil(index.path(i)), [resize], interpolation, antialias)
            theirs = tvf.center_crop(torch.from_numpy(whole).movedim(-1, 0), [size]).movedim(0, -1).numpy()
            edge = 3 + 2 * resize // min(pil(index.path(i)).size)  # where the filter reaches beyond the image
            gap = np.abs(ours - theirs)[edge:-edge, edge:-edge]
            if interpolation == "bicubic" and antialias:
                pillow = np.asarray(
                    tvf.center_crop(tvf.resize(pil(index.path(i)), [resize], v2.InterpolationMode.BICUBIC), size)
                )
                assert np.abs(ours - pillow)[edge:-edge, edge:-edge].mean() < 0.5
            gaps.append((index.path(i), gap.max()))
    assert max(gap for _, gap in gaps) < 2.01, gaps


@pytest.mark.parametrize(("interpolation", "antialias"), HOW)
def test_train_pixels_of_other_filters(odd, plain, interpolation, antialias):
    how = {"interpolation": interpolation, "antialias": antialias}
    loader = train_loader(plain(odd, train=RandomResizedCrop(size=32, flip=0.0, **how)), batch=24, seed=5)
    squared = train_loader(plain(odd, train=SquaredCrop(resize=40, size=40, flip=0.0, **how)), batch=24, seed=5)
    batch, whole = next(loader.epoch(0)), next(squared.epoch(0))
    i = batch.index.numpy()
    start, shape = random_resized_crop(crop_uniforms(5, 0, i), loader.index.size[i], (0.08, 1.0), (3 / 4, 4 / 3))
    for k, ours in enumerate(levels(batch.images)):
        image = tvf.crop(pil(loader.index.path(int(i[k]))), *start[k].tolist(), *shape[k].tolist())
        theirs = resized_by_torchvision(image, [32, 32], interpolation, antialias)
        assert np.abs(ours - theirs)[3:-3, 3:-3].max() < 2.01, loader.index.path(int(i[k]))
    for k, ours in zip(whole.index.tolist(), levels(whole.images)):
        theirs = resized_by_torchvision(pil(squared.index.path(k)), [40, 40], interpolation, antialias)
        assert np.abs(ours - theirs)[3:-3, 3:-3].max() < 2.01, squared.index.path(k)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("crop", [RandomResizedCrop(size=32), PadCrop(size=20, pad=2)])
def test_gpu_and_cpu_give_nearly_the_same(odd, plain, crop):
    config = plain(odd, train=crop)
    cpu = next(train_loader(config, batch=24).epoch(0))
    gpu = next(train_loader(config, batch=24, device=torch.device("cuda", 0)).epoch(0))
    assert gpu.images.is_cuda
    assert gpu.labels.is_cuda
    assert gpu.valid.is_cuda
    assert gpu.index.tolist() == cpu.index.tolist()
    assert gpu.labels.tolist() == cpu.labels.tolist()
    gap = (gpu.images.cpu() - cpu.images).abs() * 255
    assert gap.mean() < 0.5
    assert gap.max() < 8


def test_pad_crop_is_exactly_torchvisions(tree, plain):
    loader = train_loader(plain(tree(side=32), train=PadCrop(size=32, pad=4)), batch=24)
    for epoch in range(4):
        batch = next(loader.epoch(epoch))
        i = batch.index.numpy()
        start = pad_crop(crop_uniforms(0, epoch, i), loader.index.size[i], 32, 4)
        for k, ours in enumerate(levels(batch.images)):
            padded = tvf.pad(pil(loader.index.path(int(i[k]))), [4, 4, 4, 4])
            theirs = tvf.crop(padded, int(start[k, 0]) + 4, int(start[k, 1]) + 4, 32, 32)
            theirs = tvf.horizontal_flip(theirs) if flips(0, epoch, i, 0.5)[k] else theirs
            assert np.abs(ours - np.asarray(theirs, float)).max() < 0.01
