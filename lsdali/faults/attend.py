"""Run the work so that it ends cleanly: the cause on the first line, no process left behind."""

import os
import sys
import time
import traceback
from collections.abc import Callable

import torch
import torch.distributed as td
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lsdali import dist
from lsdali.errors import CRASHED, FINISHED, STOPPED, Stopped, UserError, first_line, report_error
from lsdali.faults.pulse import GRACE, TICK, Pulse
from lsdali.faults.signals import caught, end_with_parent
from lsdali.faults.table import ProcessTable
from lsdali.faults.wire import Line, Server
from lsdali.terminal import say


def attended(work: Callable[[torch.device, Pulse], None], seconds: float) -> int:
    """Do the work in this launch's process group; return the exit status.

    A process that stands still for so many seconds ends the run. Signals are told to `Pulse.stops`. A process of
    several ends here if the status is not 0: what is left of the group might wait for the others.
    """
    pulse = Pulse(int(os.environ.get("RANK", "0")), seconds)
    if dist.launched():
        end_with_parent()
    status = CRASHED
    with caught(pulse.signalled):
        try:
            with dist.session() as device:
                listen(pulse)
                work(device, pulse)
            status = FINISHED
        except Stopped:
            status = STOPPED
        except UserError as error:
            status = report_error(error)
        except Exception as error:
            if not dist.launched():
                raise
            status = crashed(error, pulse)
        finally:
            pulse.leave(status)
    if status and dist.launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def listen(pulse: Pulse) -> None:
    """Let the pulse be heard by rank 0; a collective.

    Raises:
        SharedError: a rank cannot reach rank 0.
    """
    table = ProcessTable(dist.world(), round(pulse.limit / TICK))
    server = None
    if dist.is_main() and dist.world() > 1:
        server = Server(table, None if dist.local_world() == dist.world() else os.environ["MASTER_ADDR"])
    address = dist.from_main(None if server is None else server.address)
    line: Line | None = None
    with dist.raise_together():
        if address is not None and not dist.is_main():
            try:
                line = Line(address, pulse.limit)
            except OSError as error:
                raise UserError(f"cannot reach rank 0 at {address[0]}:{address[1]}: {error.strerror}") from None
    if line is not None:
        pulse.begin(line, farewell=line.close)
    else:
        pulse.begin(table, table.tick, lambda: wait_for_others(table, server))


def wait_for_others(table: ProcessTable, server: Server | None) -> None:
    """Let the other ranks leave first: they hear from this one how the run ends."""
    deadline = time.monotonic() + 2 * GRACE
    while not table.empty and time.monotonic() < deadline:
        time.sleep(0.02)
    if server is not None:
        server.close()


def follows(error: Exception) -> bool:
    """Return whether an exception may only tell that a connection to another rank has ended."""
    return isinstance(error, td.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def crashed(error: Exception, pulse: Pulse) -> int:
    """Report an unexpected exception; return the exit status. Mere consequences of another rank's end are not
    reported."""
    if follows(error):
        deadline = time.monotonic() + 3 * TICK + GRACE
        while not pulse.over and time.monotonic() < deadline:
            time.sleep(0.05)
    if pulse.over:
        time.sleep(2 * GRACE)  # the pulse ends this process
    say(
        f"error: rank {pulse.rank} on {pulse.host} at step {pulse.step} ({pulse.doing}): "
        f"{type(error).__name__}: {first_line(error)}",
        file=sys.stderr,
    )
    say("".join(traceback.format_exception(error)), end="", file=sys.stderr)
    sys.stderr.flush()
    get_error_handler().record_exception(error)
    return CRASHED
