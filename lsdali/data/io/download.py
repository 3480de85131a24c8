"""Find the files of a data set, or download them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsdali.data.io.cache import new_folder
from lsdali.errors import UserError


@dataclass(frozen=True, slots=True)
class Download:
    """The layouts of a data set, and torchvision's name of what fetches it."""

    kind: str | None  # a class of torchvision.datasets; None where it has no downloader
    layouts: Mapping[str, tuple[str, tuple[str, ...]]]  # name -> folder below root, files or folders in it
    page: str  # where people get it
    calls: tuple[Mapping[str, Any], ...] = ({},)  # arguments of each call that fetches a part

    def describe(self) -> str:
        return ", or ".join(
            f"{', '.join(files)}" if folder == "." else f"{folder}/ with {', '.join(files)}"
            for folder, files in self.layouts.values()
        )


def obtain(root: str, source: Download, *, download: bool) -> tuple[Path, str]:
    """Return the folder with the files, and which layout it has; fetched first if that is wanted and root is absent.

    The folder may be root itself or lie below it. To be called by one process of a node.
    Raises UserError if there are no such files.
    """
    base = Path(root).expanduser()
    if download and not base.exists():
        fetch(base, source)
    lacking: list[str] = []
    for name, (below, files) in source.layouts.items():
        for folder in dict.fromkeys((base / below, base)):
            absent = [file for file in files if not (folder / file).exists()]
            if not absent:
                return folder, name
            if folder.is_dir() and len(absent) < len(files):
                lacking.append(f"{folder} lacks {', '.join(absent)}")
    what = f"; {lacking[0]}" if lacking else ""
    how = "set data.download: true with a root that does not exist yet, or get it" if source.kind else "get it"
    raise UserError(
        f"data root {base} does not hold the data{what}; expected {source.describe()}; {how} from {source.page}"
    )


def fetch(base: Path, source: Download) -> None:
    """Fill a new folder with torchvision's downloader, which checks checksums; `base` appears whole or not at all."""
    if source.kind is None:
        raise UserError(f"data.download: torchvision has no download of this data; get it from {source.page}")
    from torchvision import datasets

    with new_folder(base) as draft:
        try:
            for arguments in source.calls:
                getattr(datasets, source.kind)(str(draft), download=True, **arguments)
        except Exception as error:  # the network, the disk, a checksum
            raise UserError(
                f"data.download: {source.kind} could not be fetched ({error}); get it from {source.page} into {base}"
            ) from error
