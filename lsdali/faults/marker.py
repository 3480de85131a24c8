"""stopped.json, which lies in a run's folder while the run is stopped by a signal.

torchrun takes the exit status of stopped workers for a failure and starts them again if it may (--max-restarts). They
then find the file, and end with it.
"""

import json
import os
import signal
from pathlib import Path

from lsdali.disk import read_plain, write_whole

MARKER = "stopped.json"


def restarts() -> int:
    """Return how often torchrun has started this node's workers again because some had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def leave(folder: Path, step: int | None, steps: int | None) -> None:
    """Write the file: the step that is saved and the number of all steps, both None before the first step.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(folder / MARKER, json.dumps({"step": step, "steps": steps, "restarts": restarts()}, indent=2) + "\n")


def remove(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)


def stopped_before(folder: Path) -> bool:
    """Return whether a signal has stopped an earlier start of this launch.

    A host that joins or leaves makes torchrun start the workers again too; that is no restart by its count.
    """
    try:
        content = json.loads(read_plain(folder / MARKER))
        return restarts() > int(content.get("restarts", 0))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # none there, or damaged
        return False


def end_launcher() -> None:
    """Ask this node's torchrun, the parent, to end; it would start its workers once more."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["LOCAL_RANK"] == "0":
        os.kill(os.getppid(), signal.SIGTERM)
