"""Predictions of a trained network for images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lsdali.errors import UserError
from lsdali.face.exported import ExportedNetwork, open_export
from lsdali.face.images import Decoder, decoded, files_in
from lsdali.face.trained import TrainedNetwork, load

Source = str | Path | Image.Image
Opened = TrainedNetwork | ExportedNetwork


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one image: its most probable classes, or why the image cannot be read."""

    image: str
    """The file; for an image in memory, its position in the arguments."""
    classes: tuple[str, ...]
    """Names, the most probable first; empty for an image that cannot be read."""
    probabilities: tuple[float, ...]
    """Of these classes, 0 to 1."""
    fault: str | None = None
    """Why the image cannot be read; None if it can."""


def predict(
    run: str | Path | TrainedNetwork,
    images: Source | Sequence[Source],
    *,
    top: int = 5,
    temperature: float = 1.0,
    batch: int = 64,
    decoder: Decoder = "dali",
) -> list[Prediction]:
    """Return what a trained network says of images, in their order.

    Args:
        run: a run folder, a checkpoint file, what `lsdali export` wrote, or what `lsdali.load` has returned
        images: PIL images, image files, folders of images, or text files that list images
        top: how many classes to name
        temperature: divides the logits (Guo et al., 2017), as `lsdali evaluate --temperature` fits it
        batch: images of a forward pass
        decoder: dali, whose pixels are those of `lsdali evaluate`, or pillow; PIL images need no decoder

    Raises UserError if there is no such run, image, folder or list. Bad images have a `fault`.
    """
    trained = run if isinstance(run, TrainedNetwork) else open_predictor(Path(run))
    sources = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    given = [source for source in sources if isinstance(source, Image.Image)]
    if given and len(given) < len(sources):
        raise UserError("predict: give either PIL images or paths, not both")
    if given:
        return list(of_images(trained, given, top, temperature))
    files = files_in([source for source in sources if not isinstance(source, Image.Image)])
    return sorted_by_number(of_files(trained, files, top, temperature, batch, decoder))


def open_predictor(
    run: Path, checkpoint: str = "best", weights: str = "model", device: str | torch.device = "cpu"
) -> Opened:
    """Return the network of a run folder, a checkpoint file or an exported file; the last stays on the CPU.

    Raises UserError as `load` does, and if an exported file is asked for a checkpoint or for other weights.
    """
    exported = open_export(run)
    if exported is None:
        return load(run, checkpoint=checkpoint, weights=weights, device=device)
    if (checkpoint, weights) != ("best", "model"):
        raise UserError(f"{run} is an exported file, which holds one network: leave out --checkpoint and --weights")
    return exported


def sorted_by_number(found: Iterator[tuple[int, Prediction]]) -> list[Prediction]:
    """Return predictions in the order of their images."""
    return [prediction for _, prediction in sorted(found, key=lambda pair: pair[0])]


def of_images(trained: Opened, images: Sequence[Image.Image], top: int, temperature: float) -> Iterator[Prediction]:
    """Yield what the network says of images in memory, one at a time."""
    for number, image in enumerate(images):
        pixels = trained.preprocess(image)[None].to(trained.device)
        yield from best_classes(trained, [str(number)], trained(pixels), top, temperature)


def of_files(
    trained: Opened,
    files: Sequence[str],
    top: int,
    temperature: float,
    batch: int,
    decoder: Decoder,
) -> Iterator[tuple[int, Prediction]]:
    """Yield number and prediction of each file as soon as its batch is done."""
    for numbers, pixels, faults in decoded(files, trained.data, batch, trained.device, decoder):
        yield from ((number, Prediction(files[number], (), (), why)) for number, why in faults.items())
        if pixels is not None:
            logits = trained.evaluated(pixels)
            yield from zip(
                numbers, best_classes(trained, [files[i] for i in numbers], logits, top, temperature), strict=True
            )


def best_classes(
    trained: Opened, images: Sequence[str], logits: Tensor, top: int, temperature: float
) -> Iterator[Prediction]:
    """Yield the names and probabilities of the most probable classes: softmax of the logits [n, K], in fp64."""
    shares = (logits.double().cpu() / temperature).softmax(1)
    values, classes = shares.topk(min(top, shares.shape[1]), dim=1)
    for image, row, best in zip(images, values.tolist(), classes.tolist(), strict=True):
        yield Prediction(image, tuple(trained.names[k] for k in best), tuple(row))
