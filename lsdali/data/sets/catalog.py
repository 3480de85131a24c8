"""The data sets a recipe can name: where the files are, how images are cropped, and the defaults of each.

A set with a layout of its own is one class with a `listing` method, here or beside (arrays.py, lists.py), and one
line in DATASETS of the package.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from lsdali.config import Config, PathText
from lsdali.data.io.cache import cache_dir
from lsdali.data.sampling.augment import TrainImages
from lsdali.data.sets.digits import write_digits
from lsdali.data.sets.listing import Split, list_alone, list_folders
from lsdali.data.sets.resizing import Resizing
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.splits import Holdout, Seed
from lsdali.data.sets.tiny import list_tiny
from lsdali.errors import UserError
from lsdali.label_noise import Noise

# YAML has lists where Python has tuples.
Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Range = Annotated[tuple[Bounded, Bounded], Field(strict=False)]
Channels = Annotated[tuple[Bounded, Bounded, Bounded], Field(strict=False)]
Spreads = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
Size = Annotated[int, Field(ge=1, le=4096)]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RandomResizedCrop(TrainImages, Resizing):
    """torchvision's RandomResizedCrop and a horizontal flip."""

    crop: Literal["random_resized"] = "random_resized"
    scale: Range = (0.08, 1.0)
    """Smallest and largest area of the window, as a share of the image."""
    ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the window."""

    @model_validator(mode="after")
    def _ordered(self) -> "RandomResizedCrop":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be two rising shares of the area, above 0 and up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be two rising numbers above 0")
        return self


class PadCrop(TrainImages):
    """torchvision's RandomCrop(size, padding) with zeros (black), and a horizontal flip."""

    crop: Literal["pad"] = "pad"
    pad: int = Field(default=4, ge=0, le=512)
    """Black pixels added on every side before the crop."""

    @model_validator(mode="after")
    def _unscaled(self) -> "PadCrop":
        if self.ramp is not None:
            raise ValueError("ramp needs the crop random_resized: the crop pad does not resize images")
        return self


class SquaredCrop(TrainImages, Resizing):
    """torchvision's Resize((resize, resize)), RandomCrop(size) and a horizontal flip; the aspect ratio is lost."""

    crop: Literal["squared"] = "squared"
    resize: Size
    """Both sides after resizing, in pixels."""

    @model_validator(mode="after")
    def _inside(self) -> "SquaredCrop":
        if self.size > self.resize:
            raise ValueError(f"size {self.size} must not be larger than resize {self.resize}")
        if self.ramp is not None:
            raise ValueError("ramp needs the crop random_resized: the crop squared resizes images to `resize`")
        return self


class CenterCrop(Resizing):
    """torchvision's Resize(resize) and CenterCrop(size)."""

    resize: Size
    """The shorter side after resizing, in pixels."""
    size: Size
    """Side of the central square that the network sees, in pixels."""
    sides: Literal["shorter", "both"] = "shorter"
    """Which sides become `resize`: the shorter, so that the aspect ratio stays, or both."""

    @model_validator(mode="after")
    def _inside(self) -> "CenterCrop":
        if self.size > self.resize:
            raise ValueError(f"size {self.size} must not be larger than resize {self.resize}")
        return self


TrainCrop = Annotated[RandomResizedCrop | PadCrop | SquaredCrop, Field(discriminator="crop")]


class DataSet(Config):
    """Base of all data sets."""

    stores: ClassVar[bool] = False  # whether root may be a URL
    name: str
    root: PathText
    """Folder of the data set."""
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Train on this many samples, always the same, in the classes' own proportions; null: all."""
    order: Literal["shuffled", "balanced", "class_pairs"] = "shuffled"
    """shuffled: an epoch reads each training sample once; balanced: it reads as many samples, every class equally
    often, those of small classes several times and some of large ones not at all, others in every epoch; class_pairs:
    each sample once at most, neighbours in a batch being two of one class, as for zls with `ranking: friends`."""
    holdout: Holdout | None = None
    """Hold out a part of the training data to validate on; null: the official validation or test data."""
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = None
    """Train and validate on these classes only, numbered in this order; null: all."""
    noise: Noise | None = None
    """Wrong labels in training, never in validation; null: none."""
    noise_seed: Seed = 0
    """Seed that decides which labels are wrong, and what they become."""
    train: TrainCrop
    """Random crop and flip of training images."""
    eval: CenterCrop
    """Resize and crop of validation images."""
    mean: Channels = IMAGENET_MEAN
    """Mean of red, green and blue, of values in 0..1."""
    std: Spreads = IMAGENET_STD
    """Standard deviation of red, green and blue, of values in 0..1."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """CPU threads of DALI in each process; null: an equal part of the cores that this node's processes may use
    (affinity, CPU quota), 1 to 8."""
    prefetch: Annotated[int, Field(ge=1, le=64)] | None = None
    """Batches that DALI prepares ahead; null: 3 on a GPU, 2 elsewhere."""
    decoder: Literal["device", "cpu"] = "device"
    """What decodes images if a GPU trains: the GPU, or the CPU, with resizing and what follows on the GPU. Their
    pixels may differ by a grey level."""
    hw_decoder_load: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of JPEGs for the JPEG engines of GPUs that have them; null: DALI's default, 0.65. Use more if there are few
    cores."""
    read_ahead: int = Field(default=0, ge=0, le=64)
    """Batches whose files the system is told to read before they are decoded, beyond `prefetch`: for network file
    systems and disks that take long to answer. Shards and stores are read ahead without it."""
    max_bad_files: Annotated[int, Field(ge=0, le=1_000_000_000)] | Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Maximum number of unreadable training files to replace; the run stops above it. A whole number counts files; a
    fraction is a share of the training set, at least one file."""
    wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """Seconds to wait for a folder of training images that disappears during the run, before the run stops."""
    max_pixels: int = Field(default=89_478_485, ge=1, le=10_000_000_000)
    """Maximum of width times height of an image, in pixels; a larger one is a bad file. The default is Pillow's
    limit."""
    exif_orientation: bool = False
    """Rotate images by their EXIF orientation; false: read pixels as they are stored, as torchvision does."""

    @abstractmethod
    def listing(self, split: Split) -> Index:
        """Return the files of one split; UserError if the layout is wrong.

        Where `self.holdout` is given, only train is asked for, and validation data need not be there.
        """

    def layout(self) -> tuple[str, ...]:
        """Return what, beside root and split, decides the listing."""
        return ()

    def trainable(self) -> bool:
        """Return whether there are training data, whose classes then number those of the validation data."""
        return True

    def bad_files_allowed(self, samples: int) -> int:
        """Return how many of the training samples may be bad."""
        most = self.max_bad_files
        return most if isinstance(most, int) else max(int(most * samples), 1)

    def validation(self) -> str:
        """Return what is validated on, in words."""
        return self.holdout.describe() if self.holdout else "the validation data"


class Files(DataSet):
    """Images in files."""

    resident: Literal["auto", "never", "always"] = "auto"
    """Whether to decode the images once and hold them on the device; auto: if they fit and the pixels are the same to
    the bit."""
    resident_bytes: int = Field(default=1_000_000_000, ge=0, le=2**50)
    """Maximum size of a split's decoded images for auto, in bytes."""


class Folder(Files):
    """Any images in <train_dir>/<class>/ and <val_dir>/<class>/."""

    name: Literal["folder"] = "folder"
    train_dir: PathText | None = "train"
    """Training folder, relative to root; null: there is none, to evaluate only."""
    val_dir: PathText = "val"
    """Validation folder, relative to root."""

    def trainable(self) -> bool:
        return self.train_dir is not None

    def listing(self, split: Split) -> Index:
        if self.train_dir is None:
            return list_alone(self.root, self.val_dir, split)
        return list_folders(self.root, self.train_dir, None if self.holdout else self.val_dir, split)

    def layout(self) -> tuple[str, ...]:
        return (self.train_dir or "", "" if self.holdout else self.val_dir)


class Whole(NamedTuple):
    """The expected content of a data set in class folders if all of its classes are present."""

    title: str
    classes: int
    images: Mapping[Split, int]

    def checked(self, found: Index, split: Split) -> Index:
        """Return the listing. Raises UserError if all classes are there, but not all images, or too many."""
        if len(found.classes) == self.classes and len(found.labels) != self.images[split]:
            raise UserError(
                f"{split} of {found.root} has {len(found.labels):,} images in {self.classes:,} classes; {self.title} "
                f"has {self.images[split]:,}: unpack it again, or use data.name: folder for a part of it"
            )
        return found


IMAGENET_COUNTS = Whole("ImageNet-1k", 1000, {"train": 1_281_167, "val": 50_000})
TINY_COUNTS = Whole("Tiny ImageNet", 200, {"train": 100_000, "val": 10_000})


class ImageNet(Files):
    """ImageNet-1k (Russakovsky et al., 2015), or any subset of its classes, in class folders.

    If all 1,000 classes are present, every image must be.
    """

    name: Literal["imagenet"] = "imagenet"
    train: TrainCrop = RandomResizedCrop(size=224)
    eval: CenterCrop = CenterCrop(resize=256, size=224)
    train_dir: PathText = "train"
    """Training folder, relative to root."""
    val_dir: PathText = "val"
    """Validation folder, relative to root."""

    def listing(self, split: Split) -> Index:
        found = list_folders(self.root, self.train_dir, None if self.holdout else self.val_dir, split)
        return IMAGENET_COUNTS.checked(found, split)

    def layout(self) -> tuple[str, ...]:
        return (self.train_dir, "" if self.holdout else self.val_dir)


class TinyImageNet(Files):
    """Tiny ImageNet (Stanford CS231n), as it is distributed or with val sorted into class folders.

    If all 200 classes are present, every image must be.
    """

    name: Literal["tinyimagenet"] = "tinyimagenet"
    train: TrainCrop = RandomResizedCrop(size=32)
    eval: CenterCrop = CenterCrop(resize=32, size=32)

    def listing(self, split: Split) -> Index:
        found = list_folders(self.root, "train", None, "train") if self.holdout else list_tiny(self.root, split)
        return TINY_COUNTS.checked(found, split)


class Digits(Files):
    """1,797 handwritten digits, 8x8, bundled with scikit-learn (Alpaydin and Kaynak, 1998): no download."""

    name: Literal["digits"] = "digits"
    root: PathText = Field(default_factory=lambda: str(cache_dir() / "digits"))
    """Folder for the image files; written at the first use."""
    train: TrainCrop = RandomResizedCrop(size=32, scale=(0.5, 1.0), ratio=(0.8, 1.25), flip=0.0)
    eval: CenterCrop = CenterCrop(resize=32, size=32)
    mean: Channels = (0.305, 0.305, 0.305)
    std: Spreads = (0.376, 0.376, 0.376)

    def listing(self, split: Split) -> Index:
        write_digits(self.root)
        return list_folders(self.root, "train", "val", split)


DATA_SETS: dict[str, type[DataSet]] = {
    "folder": Folder,
    "imagenet": ImageNet,
    "tinyimagenet": TinyImageNet,
    "digits": Digits,
}
