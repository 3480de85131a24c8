"""The typed tree of a recipe. Each package defines its own part; this file only puts them together."""

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from lsdali import parts
from lsdali.clock import PerEpoch
from lsdali.config import Config, PathText
from lsdali.data import DATASETS
from lsdali.data.sampling.mixing import MixConfig
from lsdali.data.sets.catalog import DataSet
from lsdali.loggers import USUAL, Logger
from lsdali.loggers.profile import ProfileConfig
from lsdali.methods import METHODS
from lsdali.methods.shared.class_weights import ClassWeights
from lsdali.models import ModelConfig
from lsdali.optim import OptimizerConfig
from lsdali.optim.ema import EMA
from lsdali.optim.schedule import ScheduleConfig
from lsdali.recipe.unions import rebuild, union
from lsdali.selection import Select, Stop

if TYPE_CHECKING:
    DataConfig = DataSet
    MethodConfig = Config
else:
    DataConfig = Annotated[union(DATASETS.values()), Field(discriminator="name")]
    MethodConfig = Annotated[union(method.Config for method in METHODS.values()), Field(discriminator="name")]


class EvaluationConfig(Config):
    """How the model is evaluated on the validation split."""

    every_epochs: int = Field(1, ge=1, le=1_000_000)
    """Evaluate after every so many epochs, and after the last."""
    batch: int | None = Field(None, ge=1, le=16_384)
    """Images per forward pass and process; null: 256 on a GPU, 64 elsewhere. It changes no result."""

    def batch_on(self, device: str) -> int:
        """Return the batch on a type of device."""
        return self.batch or (256 if device == "cuda" else 64)


class SaveConfig(Config):
    """When checkpoints are written."""

    every_epochs: int = Field(1, ge=1, le=1_000_000)
    """Save after every so many epochs, and after the last."""
    every_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Also save after every so many optimizer steps."""
    keep: int = Field(2, ge=1, le=100_000)
    """How many of the newest checkpoints are kept, beside the best."""


class LogConfig(Config):
    """How often a run reports while it trains."""

    every_steps: int = Field(50, ge=1, le=1_000_000_000)
    """Number of steps between two reports, for which losses are read back from the device."""
    loggers: Annotated[tuple[Logger, ...], Field(strict=False)] = USUAL
    """Where figures go beside events.jsonl and the scalars of TensorBoard. One that fails is reported once and never
    stops the run."""
    profile: ProfileConfig | None = None
    """Training steps to profile; null: none."""


class FaultsConfig(Config):
    """When a run gives up."""

    stall_minutes: float = Field(5.0, gt=0, le=1_000_000)
    """Minutes after which a process that makes no progress, or sends no heartbeat, ends the run; counted from the first
    step on. The error names its host, step and Python stack. Choose more than any step, validation batch or save
    takes."""
    max_skipped_steps: int = Field(10, ge=0, le=1_000_000_000)
    """Maximum number of skipped steps; more end the run. A step is skipped if its loss or gradient is not finite on any
    process. In fp16, overflows that the loss scaler handles do not count."""


class BatchChange(Config):
    """Another global batch from an epoch on."""

    epoch: int = Field(ge=1, le=1_000_000)
    """Number of epochs after which it begins."""
    batch: int = Field(ge=1, le=1_000_000)
    """Images per optimizer step, over all processes."""


class Recipe(Config):
    """One experiment: everything that decides a run's result, and how the run is kept and reported."""

    uses: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Modules of other packages whose methods, networks, data sets, augmentations, optimizers and loggers it names.
    Their code runs: read a foreign recipe first, or refuse it with `--no-uses`."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Initial weights, data order, augmentation and dropout are functions of it."""
    epochs: int = Field(ge=1, le=1_000_000)
    """Passes over the training data."""
    batch: int = Field(ge=1, le=1_000_000)
    """The global batch: images per optimizer step, over all processes."""
    batch_schedule: Annotated[tuple[BatchChange, ...], Field(strict=False)] = ()
    """Later changes of `batch` (Smith et al., 2018). The learning-rate schedule is not affected."""
    micro_batch: int | None = Field(None, ge=1, le=1_000_000)
    """Largest number of images per forward pass and process; null: the process's whole part of the batch. Gradients
    add up over micro-batches; BatchNorm, and losses that compare samples, see one micro-batch at a time."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Number format of forward and backward: fp32, tf32 (matrix products in TensorFloat-32), or autocast to bf16 or
    fp16 (with loss scaling). The weights stay in fp32."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """The mode of torch.compile for the student's forward; null: eager. reduce-overhead and max-autotune record CUDA
    graphs, with which `micro_batch` is refused."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of torch in each process; null: OMP_NUM_THREADS, or as many as there are cores. If the CPU trains,
    their number decides the last bits of the weights."""
    data: DataConfig
    """The data set, its crops and augmentations."""
    mix: MixConfig | None = None
    """Mixing of training images in pairs; null: none. Methods without a rule for mixed images refuse it."""
    model: ModelConfig
    """The network to train."""
    method: MethodConfig
    """The training loss and its settings."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the training loss, as torch's `weight=`: the loss is the weighted mean over the batch
    of all processes; null: all equal. Methods whose loss is not a mean over samples refuse them."""
    optimizer: OptimizerConfig
    """The optimizer, its peak learning rate and its weight decay."""
    schedule: ScheduleConfig
    """The learning rate as a function of the epoch."""
    ema: EMA | None = None
    """An exponential moving average of the weights, evaluated beside them; null: none."""
    evaluate: EvaluationConfig = EvaluationConfig()
    """When and how the validation data is evaluated."""
    select: Select = Select()
    """The metric that decides which checkpoint is the best."""
    stop: Stop | None = None
    """When to end before the last epoch; null: never."""
    save: SaveConfig = SaveConfig()
    """When checkpoints are written and how many are kept."""
    log: LogConfig = LogConfig()
    """What a run reports while it trains."""
    faults: FaultsConfig = FaultsConfig()
    """What a run does when a process hangs or dies."""
    run_dir: PathText | None = None
    """The run folder; null: runs/<recipe name>."""

    @property
    def sampler(self) -> str:
        """The name of the order in which training samples are read: the method's own, or that of the data."""
        own = METHODS[cast(Any, self.method).name].sampler
        return self.data.order if own == "shuffled" else own

    def fixed_length(self) -> str:
        """Return why a run of this recipe cannot have other epochs once it has begun; empty if it can."""
        schedule, method = self.schedule, cast(Any, self.method)
        if schedule.needs_length:
            return f"the schedule '{schedule.name}' sets the rate of every epoch by how many there are"
        if METHODS[method.name].needs_length:
            return f"the method '{method.name}' sets the target of every epoch by how many there are"
        return ""

    @property
    def batches(self) -> PerEpoch:
        """The global batch of each epoch."""
        return PerEpoch(self.batch, tuple((change.epoch, change.batch) for change in self.batch_schedule))

    @property
    def names(self) -> set[str]:
        """The names of its parts, and the modules that it uses."""
        kinds: list[Any] = [self.data, self.model, self.method, self.optimizer]
        kinds += [*self.data.train.augment, *self.log.loggers]
        features = getattr(self.method, "features", None)
        kinds += [] if features is None else [features.loss]
        return {*self.uses, *(kind.name for kind in kinds)}

    @model_validator(mode="after")
    def _batches_rise(self) -> "Recipe":
        epochs = [0, *(change.epoch for change in self.batch_schedule)]
        if not all(a < b for a, b in pairwise(epochs)):
            raise ValueError(f"batch_schedule: its epochs must increase strictly; got {epochs[1:]}")
        return self

    @model_validator(mode="after")
    def _fit_for_the_device(self) -> "Recipe":
        if self.micro_batch is not None and self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"micro_batch and compile: {self.compile} do not go together: its CUDA graphs reuse the memory that "
                "holds the gradients of the part before; use compile: default, or leave out micro_batch"
            )
        if self.model.gradient_checkpointing and self.compile is not None:
            raise ValueError(
                "model.gradient_checkpointing and compile do not go together: torch.compile decides by itself what it "
                "keeps; leave out one of them"
            )
        if self.precision == "fp16" and self.optimizer.implementation == "apex":
            raise ValueError(
                "precision: fp16 and optimizer.implementation: apex do not go together: apex's optimizers make the "
                "host wait for the device at each step; use implementation: auto, or precision: bf16"
            )
        return self

    @model_validator(mode="after")
    def _ramp_ends(self) -> "Recipe":
        ramp = self.data.train.ramp
        if ramp is not None and ramp.end >= self.epochs:
            raise ValueError(
                f"data.train.ramp.end {ramp.end}: no epoch is left after so many of {self.epochs}, "
                "and none would see the full size"
            )
        return self


# Keys that change where and how a run is carried out, never its result: a run may be resumed with other values.
OPERATIONAL = (
    "uses",
    "run_dir",
    "save",
    "log",
    "faults",
    "threads",
    "data.root",
    "data.threads",
    "data.prefetch",
    "data.hw_decoder_load",
    "data.read_ahead",
    "data.max_bad_files",
    "data.wait_seconds",
    "data.resident",
    "data.resident_bytes",
    "evaluate.batch",
)

parts.on_growth(partial(rebuild, Recipe))
