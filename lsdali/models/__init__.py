"""The networks that a recipe can name."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import nn
from typing_extensions import Self

from lsdali import parts
from lsdali.config import Config
from lsdali.errors import UserError
from lsdali.models.families.sized import SIZED, sized
from lsdali.models.families.timm import PREFIX, build_timm, known_timm, timm_module
from lsdali.models.families.torchvision import THEIRS, TORCHVISION
from lsdali.models.families.torchvision_weights import known_torchvision, torchvision_module
from lsdali.models.names import unknown
from lsdali.models.options import INITS, Init, zero_last_norms
from lsdali.models.pretrained import WeightsConfig
from lsdali.models.student import Network
from lsdali.models.wrapped import as_network

FAMILIES = (
    "torchvision",
    "san",
)
"""Files in families/ with networks for large images, each with a dict NETWORKS."""
SMALL_FAMILIES = (
    "preact",
    "cifar_resnet",
    "dense",
    "resnext",
    "pyramid",
    "wide",
    "plain",
    "mobile",
    "inception",
)
"""The same for small images."""


CIFAR: dict[str, Callable[..., nn.Module]] = parts.from_files("lsdali.models.families", SMALL_FAMILIES, "NETWORKS")
"""For small images."""

MODELS = {**parts.from_files("lsdali.models.families", FAMILIES, "NETWORKS"), **CIFAR}
"""Builders (classes), and (classes, key=...) for the keys of a recipe that each has as a parameter. A builder returns a
Network, or any module from images [B, 3, H, W] to logits [B, K]."""
parts.opened("MODELS", MODELS, "network", parts.callable_entry)

OPTIONS = ("width", "dropout", "drop_path")
KNOWN: dict[str, Callable[[str], None]] = {PREFIX: known_timm, THEIRS: known_torchvision}
"""Prefixes of names from another package, and the check that raises UserError for an unknown one."""


def builder(name: str, *, whole: bool = False) -> Callable[..., nn.Module]:
    """Return what builds a name in MODELS, one with sizes in it, `timm/<name>` or `torchvision/<name>`.

    Of the latter two, with `whole`, the module as its package has it.
    """
    if name.startswith(PREFIX):
        return partial(timm_module if whole else build_timm, name)
    if name.startswith(THEIRS):
        return (None if whole else TORCHVISION.get(name.removeprefix(THEIRS))) or partial(torchvision_module, name)
    return MODELS.get(name) or sized(name) or MODELS[name]


def takes(name: str, option: str) -> bool:
    return option in signature(builder(name)).parameters


def known_model(name: str) -> str:
    try:
        for prefix, check in KNOWN.items():
            if name.startswith(prefix):
                check(name)
                return name
        known = name in MODELS or sized(name) is not None
    except UserError as fault:
        raise ValueError(str(fault)) from fault
    if not known:
        raise ValueError(unknown("model", name, MODELS))
    return name


def name_schema(schema: dict[str, Any]) -> None:
    """Let editors offer the names that there are."""
    patterns = [f"^({'|'.join(KNOWN)}).+", *(f"^{kind.pattern}$" for kind in SIZED)]
    schema["anyOf"] = [{"enum": sorted(MODELS)}, *({"pattern": pattern} for pattern in patterns)]


class ModelConfig(Config):
    """Which network is trained."""

    name: Annotated[str, AfterValidator(known_model), Field(json_schema_extra=name_schema)]
    """A name in MODELS, one with sizes in it as wrn_22_6 (`lsdali list models` says which), or timm/<name> or
    torchvision/<name> for any classifier of these packages."""
    stages: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Parts of the module, in order, whose maps [B, C, H, W] are its stages, such as [layer1, layer2]; null: found. For
    modules of other packages only."""
    classifier: str | None = None
    """The module's last linear layer, such as fc; null: found. For modules of other packages only."""
    width: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Channels of the first stage, for some networks for small images; null: the published width. With fewer than 16
    channels torch's CPU kernels of strided 1x1 convolutions overrun their buffers (seen with torch 2.15)."""

    classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Outputs of the classifier; null: as many as the data has classes."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout rate, for networks whose paper has dropout; null: the published rate."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Largest rate of stochastic depth (or ShakeDrop), that of the last block; null: the published rate."""
    init: Init | None = None
    """Initialisation of the weights. torch: uniform, as torch makes layers; kaiming_out: convolutions normal by
    fan-out; kaiming_in: convolutions and linear layers normal by fan-in; null: the published way."""
    zero_gamma: bool = False
    """Whether residual branches start at zero: the scale of their last norm is 0."""
    sync_batchnorm: bool = False
    """Whether BatchNorm's statistics in training are those of all processes' images, not of each process's own. Several
    processes then train as one does, for two more exchanges in the forward and the backward pass of each BatchNorm."""
    gradient_checkpointing: bool = False
    """Whether blocks keep only their inputs and compute the rest again in the backward pass (Chen et al. 2016): less
    memory for about a third more time, and the same weights."""
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Parts that are not trained, norms with their statistics: stages, or prefixes of tensor names, such as [conv1,
    bn1, layer1]."""
    weights: WeightsConfig | None = None
    """Pretrained weights; null: trained from scratch."""

    @model_validator(mode="after")
    def options_fit(self) -> Self:
        if self.width is not None and not takes(self.name, "width"):
            raise ValueError(f"'{self.name}' has a fixed width; `width` is for {self.with_option('width')}")
        for option in ("dropout", "drop_path"):
            if getattr(self, option) is not None and not takes(self.name, option):
                raise ValueError(f"'{self.name}' has no {option}; `{option}` is for {self.with_option(option)}")
        if self.weights is not None and (self.init is not None or self.zero_gamma):
            raise ValueError("`weights` are where the network begins; leave out `init` and `zero_gamma`")
        if self.weights is not None:
            self.weights.check_compatible(self.name)
        return self

    @staticmethod
    def with_option(option: str) -> str:
        return ", ".join(sorted(name for name in MODELS if takes(name, option)))


def build_network(config: ModelConfig, classes: int) -> Network:
    """Build an untrained network; its weights are drawn from torch's global generator.

    Raises UserError for an option that only the built network shows it cannot honour, and as `as_network` does.
    """
    options = {key: getattr(config, key) for key in OPTIONS if getattr(config, key) is not None}
    named = config.stages is not None or config.classifier is not None
    module = builder(config.name, whole=named)(classes, **options)
    network = as_network(module, classes, name=config.name, stages=config.stages, classifier=config.classifier)
    if config.init is not None:
        INITS[config.init](network)
    if config.zero_gamma:
        zero_last_norms(network, config.name)
    return network
