"""Errors for users, and the exit statuses of a run.

| status | meaning |
|---|---|
| 0 | finished |
| 1 | an unexpected exception; its traceback is printed |
| 2 | bad input, or a place that cannot be written: one sentence says which |
| 3 | a process of the run died, or stood still for too long: one sentence says which |
| 75 | stopped by a signal, and saved; the same command goes on (EX_TEMPFAIL of sysexits.h) |
| 128 + n | ended at once by a second signal, number n |
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from lsdali.terminal import say

P = ParamSpec("P")


BREAK, LINE_END = re.compile(r"\n(?!  )"), r"\\n"  # lines of a sentence of several are indented
FINISHED, CRASHED, REFUSED, BROKEN, STOPPED = 0, 1, 2, 3, 75


class UserError(Exception):
    """Bad input. The message is one clear sentence that names the thing and says what would be right.

    The entry points print the message alone, without a traceback, and exit with status 2.
    """


class SharedError(UserError):
    """Bad input that every rank sees alike, so only rank 0 prints it."""


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise as SharedError what is wrong with input that every rank reads alike."""
    try:
        yield
    except UserError as error:
        raise SharedError(str(error)) from None


class Stopped(Exception):
    """A signal has stopped the run between two steps; everything is saved."""


def first_line(fault: BaseException) -> str:
    """Return the message of a library's exception in one line; its class if the message is empty."""
    return next(iter(str(fault).splitlines()), type(fault).__name__)


def report_error(error: Exception) -> int:
    """Report an error and return the exit status, 2. Rank 0 reports shared errors, each rank its own."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not isinstance(error, SharedError):
        alone = "" if rank == "0" else f"rank {rank}: "
        say(f"error: {alone}{BREAK.sub(LINE_END, str(error))}", file=sys.stderr, flush=True)
    return REFUSED


def command(function: Callable[P, int]) -> Callable[P, int]:
    """Make an entry point of a function that returns an exit status: report a UserError in one sentence, return 2."""

    @wraps(function)
    def main(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            return report_error(error)

    return main
