"""One place for temporary files: pytest's own, which it empties."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What libraries put into the system's folder goes with the tests' files.

    torch.compile keeps its code there, and DALI the Python that it generates, which a killed process leaves behind.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("system")))
        patch.setattr(tempfile, "tempdir", None)  # asked again
        yield
