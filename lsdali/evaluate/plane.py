"""Features of three classes in a plane.

What the classifier reads of the first images of each class is projected onto the span of the classifier's rows for
them, and from there onto the plane of its two principal axes (Mueller et al. 2019, figure 1). As in the code of LS-KD,
axes are those of 150 training images a class and the classes' centroids; 50 validation images a class are put there
too. Training images are cropped as in validation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.data.index.index import subset
from lsdali.data.sets.listing import Split
from lsdali.data.sets.splits import of_classes, whole
from lsdali.errors import UserError
from lsdali.evaluate.runs import Run, Samples, open_samples, read_outputs
from lsdali.page.figures import scatter_figure
from lsdali.posthoc import centroids, principal_plane, projected, template_basis

MOST_POINTS: dict[Split, int] = {"train": 150, "val": 50}  # images of a class


def plane(run: Run, overrides: Sequence[str], names: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Return points [x, y] and class (0, 1, 2) of each image, and centroids, of train and of val. Collective."""
    network = run.network.to(device).to(memory_format=torch.channels_last)
    classifier = network.classifier
    if network.width == 0 or classifier.bias is None:
        raise UserError(f"{run.name} has no known classifier with a bias, whose rows would span the plane")

    def features(images: Tensor) -> Tensor:
        return network.parts(images)[1]

    points, labels = {}, {}
    for split in MOST_POINTS:
        samples, numbers = open_part(run, overrides, names, split)
        x, labels[split], _ = read_outputs(features, network.width, samples, device)
        rows = classifier.weight.detach().cpu()[numbers], classifier.bias.detach().cpu()[numbers]
        points[split] = projected(x, template_basis(*rows))
    middles = {split: centroids(points[split], labels[split], len(names)) for split in MOST_POINTS}
    mean, axes = principal_plane(torch.cat([points["train"], middles["train"]]))
    return {
        split: {
            "points": ((points[split] - mean) @ axes.T).tolist(),
            "labels": labels[split].tolist(),
            "centroids": ((middles[split] - mean) @ axes.T).tolist(),
        }
        for split in MOST_POINTS
    }


def open_part(run: Run, overrides: Sequence[str], names: Sequence[str], split: Split) -> tuple[Samples, list[int]]:
    """Return the first images of the named classes, now 0, 1, 2, and what numbers they had.

    UserError for an unknown one.
    """
    samples = open_samples(run, overrides, split)
    with dist.raise_together():
        index = samples.index
        part = of_classes(whole(np.asarray(index.labels), index.classes), names)
        first = [np.flatnonzero(part.labels == k)[: MOST_POINTS[split]] for k in range(len(names))]
        part = part.at(np.sort(np.concatenate(first)))
    return Samples(samples.recipe, subset(index, part)), [index.classes.index(name) for name in names]


def plane_figures(found: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Run -> caption and SVG of each split, the points of a class in one colour and form, its centroid larger."""
    return {
        name: [
            (
                f"{split}, {len(part['points'])} images",
                scatter_figure(part["points"], part["labels"], part["centroids"]),
            )
            for split, part in run.items()
        ]
        for name, run in found.items()
    }
