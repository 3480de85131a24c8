"""Read the data of figures: features and logits of the images of chosen classes, on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.data.index.index import subset
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.splits import Chosen, of_classes, whole
from lsdali.errors import UserError
from lsdali.evaluate.runs import Run, Samples, open_samples, read_outputs


@dataclass(frozen=True)
class ImageOutputs:
    """Outputs for some images of a run's data."""

    values: Tensor  # [N, D] fp32: features, or logits
    labels: Tensor  # [N] int64, of the names
    names: list[str]


def outputs_of(
    run: Run,
    overrides: Sequence[str],
    classes: Sequence[str] | None,
    split: Split,
    most: int | None,
    of: str,
    device: torch.device,
) -> ImageOutputs:
    """Read `features` (what the classifier reads) or `logits` of the first images of the classes. Collective.

    No classes are all of them, no `most` is all images. Raises UserError for a class that the data does not have, or
    one without an image.
    """
    network = run.network.to(device).to(memory_format=torch.channels_last)
    samples = open_samples(run, overrides, split)
    with dist.raise_together():
        index = first_of(samples.index, classes, most)

    def features(images: Tensor) -> Tensor:
        return network.features(network.maps(images))

    function, width = (features, network.classifier.in_features) if of == "features" else (network, network.classes)
    values, labels, _ = read_outputs(function, width, Samples(samples.recipe, index), device)
    return ImageOutputs(values, labels, list(index.classes))


def first_of(index: Index, classes: Sequence[str] | None, most: int | None) -> Index:
    """Return the first images of the classes, which are then numbered 0, 1, ... Raises UserError if one has none."""
    part: Chosen = whole(np.asarray(index.labels), index.classes)
    if classes is not None:
        part = of_classes(part, classes)
    own = [np.flatnonzero(part.labels == k)[:most] for k in range(len(part.classes))]
    if empty := [name for name, rows in zip(part.classes, own, strict=True) if not len(rows)]:
        raise UserError(f"the class {empty[0]} has no image here: name others with --classes, or take another --split")
    return subset(index, part.at(np.sort(np.concatenate(own))))
