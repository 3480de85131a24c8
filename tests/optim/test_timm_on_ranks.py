"""timm's optimizers on two ranks: a run that was stopped in mid-epoch ends with the bits of one that was not."""

from pathlib import Path

import pytest

from lsdali.testing.contract import check_resume
from tests.ranks import OnRanks


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["lamb", "lars", "lion", "muon", "adan"])
def test_resume_is_exact(name: str, folder: Path, place: Path, on_ranks: OnRanks) -> None:
    pytest.importorskip("timm")
    optimizer = {"name": f"timm/{name}", "lr": 0.001, "weight_decay": 0.001}
    on_ranks(2, check_resume, {"name": "ce"}, place, {"optimizer": optimizer})
