"""One place for temporary files, pytest's own, which it empties; and a folder to train in."""

import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from lsdali.limits import cpu_cores
from tests.harness import make_images
from tests.methods.trainers import trainer_for
from tests.ranks import OnRanks, Ranks

FAST = (
    "tests/data/test_pixels.py",
    "tests/data/test_sampler.py",
    "tests/methods/test_bad_values.py",
    "tests/methods/test_contract.py::test_one_loss",
    "tests/methods/test_contract.py::test_resume_is_exact_on_one_rank[ce]",
    "tests/methods/test_contract.py::test_two_ranks_train_as_one_does[zls-0.1-bilinear]",
    "tests/methods/test_published_numbers.py",
    "tests/test_functional.py",
    "tests/test_metrics.py",
    "tests/test_recipe.py::test_every_recipe",
    "tests/test_recipe.py::test_the_sentence_of_each_error",
)
"""How the names of the tests of `pytest -m fast` begin: losses, recipes, pixels, metrics, one resume, two ranks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(FAST):
            item.add_marker(pytest.mark.fast)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process of pytest for each core; more than 8 wait for the longest test."""
    return min(cpu_cores(), 8)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What libraries put into the system's folder goes with the tests' files.

    torch.compile keeps its code there, and DALI the Python that it generates, which a killed process leaves behind.
    What multiprocessing puts there, it removes itself, after the tests' files are gone.
    """
    get_temp_dir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("system")))
        patch.setattr(tempfile, "tempdir", None)  # asked again
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained teacher in it; the index cache lies there too."""
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("contract")
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        make_images(base / "images")
        trainer_for({"name": "ce"}, base / "teacher", epochs=1).run()
        yield base


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of one test inside the shared one; checkpoints of all tests would be gigabytes."""
    yield folder / tmp_path.name
    shutil.rmtree(folder / tmp_path.name, ignore_errors=True)


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[OnRanks]:
    """Run a check on every rank of a process group whose processes stay for the next check."""
    ranks = Ranks()
    yield ranks.run
    ranks.stop()
