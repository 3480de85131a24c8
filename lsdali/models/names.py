"""Sentences about unknown names, and the names of networks in other projects."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

SYNONYMS = {
    "resnet18": "preact_resnet18 or cifar_resnet18 for 32 px, resnet18 for 224 px",
    "resnet34": "preact_resnet34 or cifar_resnet34 for 32 px, resnet34 for 224 px",
    "resnet50": "cifar_resnet50 for 32 px, resnet50 for 224 px",
    "resnet101": "cifar_resnet101 for 32 px, resnet101 for 224 px",
    "resnet152": "cifar_resnet152 for 32 px, resnet152 for 224 px",
    "densenet121": "cifar_densenet121 for 32 px, densenet121 for 224 px",
    "cifarresnet10": "preact_resnet10",
    "cifarresnet18": "preact_resnet18",
    "cifarresnet34": "preact_resnet34",
    "imagenetresnet18": "cifar_resnet18",
    "imagenetresnet34": "cifar_resnet34",
    "imagenetresnet50": "cifar_resnet50",
    "imagenetresnet101": "cifar_resnet101",
    "imagenetresnet152": "cifar_resnet152",
    "inceptionv4": "cifar_inception_v4",
    "lenet5": "lenet",
    "mobilenetv2": "cifar_mobilenet_v2_half for 32 px, mobilenet_v2 for 224 px",
    "pyramidnet": "pyramidnet200",
    "pyramidnetsd": "pyramidnet200_shakedrop",
    "resnext": "resnext29_8x64d",
    "resnext292": "resnext29_2x64d",
    "resnext294": "resnext29_4x64d",
    "resnext2932": "resnext29_32x4d",
    "shufflenetv2": "cifar_shufflenet_v2",
    "wideresnet2810": "wrn_28_10",
}
"""Names in the code of the published systems, without capitals and punctuation -> names here."""


def plain(name: str) -> str:
    """Return a name without capitals and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return 'there is no <kind> <name>; did you mean <nearest>?', or all known names if none is near."""
    names = sorted(known)
    same = [candidate for candidate in names if plain(candidate) == plain(name)]
    near = same or get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    if plain(name) in SYNONYMS:
        hint = f"did you mean {SYNONYMS[plain(name)]}?"
    return f"there is no {kind} '{name}'; {hint}"
