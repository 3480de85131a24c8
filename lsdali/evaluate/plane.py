"""Features of three classes in a plane.

What the classifier reads of the first images of each class is projected onto the span of the classifier's rows for
them, and from there onto the plane of its two principal axes (Mueller et al. 2019, figure 1). As in the code of LS-KD,
axes are those of 150 training images a class and the classes' centroids; 50 validation images a class are put there
too. Training images are cropped as in validation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.data.index.index import subset
from lsdali.data.sets.listing import Split
from lsdali.data.sets.splits import of_classes, whole
from lsdali.evaluate.runs import Run, Samples, open_samples, read
from lsdali.posthoc import centroids, principal_plane, projected, template_basis

MOST: dict[Split, int] = {"train": 150, "val": 50}  # images of a class
COLOURS = ("#c33", "#2a2", "#36c")
SIDE = 300  # of a figure, in pixels


def plane(run: Run, overrides: Sequence[str], names: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Points [x, y] and class (0, 1, 2) of each image, and centroids, of train and of val. Collective."""
    network = run.network.to(device).to(memory_format=torch.channels_last)
    classifier = network.classifier

    def features(images: Tensor) -> Tensor:
        return network.features(network.maps(images))

    points, labels = {}, {}
    for split in MOST:
        samples, numbers = open_part(run, overrides, names, split)
        x, labels[split], _ = read(features, classifier.in_features, samples, device)
        rows = classifier.weight.detach().cpu()[numbers], classifier.bias.detach().cpu()[numbers]
        points[split] = projected(x, template_basis(*rows))
    middles = {split: centroids(points[split], labels[split], len(names)) for split in MOST}
    mean, axes = principal_plane(torch.cat([points["train"], middles["train"]]))
    return {
        split: {
            "points": ((points[split] - mean) @ axes.T).tolist(),
            "labels": labels[split].tolist(),
            "centroids": ((middles[split] - mean) @ axes.T).tolist(),
        }
        for split in MOST
    }


def open_part(run: Run, overrides: Sequence[str], names: Sequence[str], split: Split) -> tuple[Samples, list[int]]:
    """The first images of the named classes, now 0, 1, 2, and what numbers they had. UserError for an unknown one."""
    samples = open_samples(run, overrides, split)
    with dist.raise_together():
        index = samples.index
        part = of_classes(whole(np.asarray(index.labels), index.classes), names)
        first = [np.flatnonzero(part.labels == k)[: MOST[split]] for k in range(len(names))]
        part = part.at(np.sort(np.concatenate(first)))
    return Samples(samples.recipe, subset(index, part)), [index.classes.index(name) for name in names]


def as_html(found: dict[str, Any], names: Sequence[str]) -> str:
    """A page that stands alone: a row of figures for each run."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(found=found, names=names, colours=COLOURS, side=SIDE, scale=scale)


def scale(run: dict[str, Any]) -> list[float]:
    """Least x, least y and the longer side of the square that holds every point of a run."""
    points = [p for part in run.values() for p in (*part["points"], *part["centroids"])]
    low = [min(p[k] for p in points) for k in (0, 1)]
    return [*low, max(max(p[k] for p in points) - low[k] for k in (0, 1)) or 1.0]


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Features in a plane</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
figure { display: inline-block; margin: 1em } svg { background: #f6f6f6; overflow: visible }
circle { fill-opacity: .5 } rect { stroke: #000 }
</style>
<h1>Features in a plane</h1>
<p>{% for name in names %}<span style="color: {{ colours[loop.index0] }}">&#9679; {{ name }}</span> {% endfor %}
(squares: centroids)</p>
{% for name, run in found.items() %}
<h2>{{ name }}</h2>
{% set x, y, span = scale(run) %}
{% for split, part in run.items() %}
<figure><svg width="{{ side }}" height="{{ side }}" viewBox="-10 -10 {{ side + 20 }} {{ side + 20 }}">
{% for p in part.points %}
<circle cx="{{ "%.1f" % (side * (p[0] - x) / span) }}" cy="{{ "%.1f" % (side * (1 - (p[1] - y) / span)) }}" r="4"
 fill="{{ colours[part.labels[loop.index0]] }}"/>
{% endfor %}
{% for p in part.centroids %}
<rect x="{{ "%.1f" % (side * (p[0] - x) / span - 6) }}" y="{{ "%.1f" % (side * (1 - (p[1] - y) / span) - 6) }}"
 width="12" height="12" fill="{{ colours[loop.index0] }}"/>
{% endfor %}
</svg><figcaption>{{ split }}, {{ part.points | length }} images</figcaption></figure>
{% endfor %}
{% endfor %}
</html>
"""
