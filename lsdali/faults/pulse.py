"""The pulse of a process: it tells rank 0 where the main thread is, and carries out what rank 0 concludes.

No collective and no wait is added to a step: the main thread counts in an object of its own process, and a thread sends
the count about once a second. Ranks agree on the step to stop at by promises (`Beat.bound`): none begins a step from
its bound on before it knows the greatest bound of all, and that is the step.
"""

import faulthandler
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lsdali.errors import BROKEN, STOPPED, UserError
from lsdali.faults.table import Beat, Verdict
from lsdali.terminal import say

TICK = 1.0  # seconds
LATER = 10.0  # seconds after which a process shows its stack itself: the sentence of the others comes first
GRACE = 3.0  # seconds that a process has to end by itself once the run is over
COUNTS = ("/sys/fs/cgroup{}/memory.events", "/sys/fs/cgroup/memory{}/memory.oom_control")  # control groups v2, v1


class Hears(Protocol):
    """The table, or a line to it."""

    def hear(self, beat: Beat) -> Verdict: ...


class Pulse:
    """The state of this process's main thread, and whether it must stop. Nothing runs before `watch`."""

    def __init__(self, rank: int = 0, limit: float = 300.0, end: Callable[[int], None] = os._exit) -> None:
        self.rank, self.limit, self.end = rank, limit, end
        self.host = socket.gethostname()
        self.step, self.doing, self.count = 0, "building", 0
        self.started = False  # whether the main thread has reached the first step
        self.stop: str | None = None
        self.on_early_stop: Callable[[], None] = lambda: None  # called before the process ends without a step
        self.over = False  # a verdict has ended the run
        self._at: int | None = None
        self._bound: int | None = None
        self._changed = threading.Condition()
        self._awake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._last, self._still = -1, 0
        self._main = threading.get_ident()
        self._killed = killed_by_kernel()

    # ---- the main thread

    def beat(self, doing: str) -> None:
        """Say that the main thread gets on. It costs less than a microsecond."""
        self.count += 1
        self.doing = doing

    def stops(self, step: int) -> bool:
        """Return whether the run stops here, before `step`; the same on every rank.

        It waits if a stop is being agreed upon, a second or two.
        """
        with self._changed:
            self.step, self.started = step, True
            if self._bound is None or step < self._bound:
                return False
            self._changed.wait_for(lambda: self._at is not None)
            return self._at is not None and step >= self._at

    def begin(
        self, table: Hears, tick: Callable[[], None] = lambda: None, farewell: Callable[[], None] = lambda: None
    ) -> None:
        """Send beats from now on; `tick` is called about once a second, `farewell` after the last beat."""
        self._table, self._farewell = table, farewell
        self._thread = threading.Thread(target=self._loop, args=(table, tick), name="pulse", daemon=True)
        self._thread.start()

    def leave(self, status: int) -> None:
        """Send the last beat, with the exit status of this process."""
        if self._thread is None:
            return
        self._closed = True
        self._awake.set()
        self._thread.join(2 * TICK)
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            self._table.hear(self.now(left=status))
        self._farewell()

    # ---- the threads

    def signalled(self, name: str) -> None:
        """Ask all ranks to stop; end this process if it knows of no others yet."""
        self.stop = name
        self._awake.set()
        if self._thread is None:
            self._stop_early()

    def _stop_early(self) -> None:
        with suppress(UserError):
            self.on_early_stop()
        if self.rank == 0:
            say(f"stopped by {self.stop} before the first step; the same command begins anew", flush=True)
        self.end(STOPPED)

    def now(self, left: int | None = None) -> Beat:
        """Return what this process says of itself."""
        with self._changed:
            return Beat(
                rank=self.rank,
                host=self.host,
                step=self.step,
                doing=self.doing,
                count=self.count,
                still=self._still,
                stop=self.stop,
                bound=self._bound,
                killed=killed_by_kernel() - self._killed,
                left=left,
            )

    def carry_out(self, verdict: Verdict) -> bool:
        """Do what the table says; return whether this process has something to say at once."""
        if verdict.end is not None:
            self.over = True
            if self.rank == 0 and verdict.end:
                tell_cause(verdict.end)
            if self.rank in verdict.stacks:
                time.sleep(TICK)  # the cause comes first
                say(self.stack(), file=sys.stderr, flush=True)
            time.sleep(GRACE)
            self.end(verdict.status)
        if verdict.stop is None or self._at is not None:
            return False
        if not self.started:
            self.stop = verdict.stop
            self._stop_early()
        with self._changed:
            self._at = verdict.at
            self._changed.notify_all()
            promised, self._bound = self._bound is not None, self._bound or self.step + 1
        return not promised

    def stack(self) -> str:
        """Return where the main thread stands, innermost call last."""
        frame = sys._current_frames()[self._main]
        return f"rank {self.rank} on {self.host} stands here:\n{''.join(traceback.format_stack(frame)[-12:])}"

    def _loop(self, table: Hears, tick: Callable[[], None]) -> None:
        while not self._closed:
            if sys.__stderr__ is not None:  # for a main thread that holds the interpreter's lock
                faulthandler.dump_traceback_later(self.limit + LATER, file=sys.__stderr__)
            try:
                speaks = self.carry_out(table.hear(self.now()))
            except OSError as error:
                self._alone(error)
                return
            if not speaks:
                self._awake.wait(TICK)
                self._awake.clear()
                self._count_still()
                tick()

    def _count_still(self) -> None:
        on = self.count != self._last or not self.started
        self._last, self._still = self.count, 0 if on else self._still + 1

    def _alone(self, error: OSError) -> None:
        """Rank 0 cannot be reached any more."""
        if self._closed:
            return
        self.over = True
        time.sleep(TICK)
        if self.rank == 1:
            what = "no sign of life from" if isinstance(error, TimeoutError) else "has died:"
            tell_cause(f"{what} rank 0, seen from rank 1 on {self.host} at step {self.step} ({self.doing})")
        time.sleep(GRACE)
        self.end(BROKEN)


def tell_cause(cause: str) -> None:
    """Print why the run is over."""
    say(f"error: {cause}; the same command goes on from the newest checkpoint", file=sys.stderr, flush=True)


def killed_by_kernel() -> int:
    """Return how many processes of this one's control group the kernel has killed for want of memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in COUNTS if controllers in ("", "memory") else ():
            for group in (path.rstrip("/"), ""):  # a container may see its own group as the root
                with suppress(OSError):
                    found = re.search(r"^oom_kill (\d+)", Path(name.format(group)).read_text(), re.M)
                    if found:
                        return int(found[1])
    return 0
