"""A process that has imported what runs need, and forks for each command, so that a cell costs no start of Python.

It reads requests from its input, a line of JSON each, and answers with the process number of the fork, then with its
exit status. A fork has a session of its own, and writes into the log that the request names.
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

from lsdali.errors import UserError
from lsdali.recipe import check_recipe

NEEDED = (
    "lsdali.train",
    "lsdali.build",
    "lsdali.resume",
    "lsdali.recipe",
    "lsdali.loggers.profile",
    "lsdali.faults.attend",
    "lsdali.state.run_folder",
    "lsdali.evaluate.__main__",
    "lsdali.evaluate.figures",
    "lsdali.evaluate.output",
    "lsdali.evaluate.robust",
    "scipy.optimize",
    "torch._dynamo",
    "torchvision",
    "torch.distributed.elastic.multiprocessing.errors",
)
"""What training and evaluation import, some of it late."""


class Forker:
    """The parent's side: one command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lsdali.sweep.forker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._heard = b""

    def begin(self, arguments: Sequence[str], log: Path) -> "Forked":
        """Run `python -m NAME ...`. Raises OSError if the process has ended."""
        request = {"module": arguments[2], "arguments": arguments[3:], "log": str(log)}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        return Forked(self)

    def hear(self) -> list[dict[str, int]]:
        """Return the answers that have come since the last call; a status of 1 when the process has ended."""
        ended = self._process.poll() is not None
        self._heard += self._answers.read() or b""
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines] + ([{"status": 1}] if ended else [])

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Let the process end."""
        self._requests.close()
        self._process.wait()
        self._answers.close()


class Forked:
    """One command, as a Popen has it."""

    def __init__(self, forker: Forker) -> None:
        self._forker = forker
        self._pid: int | None = None
        self._status: int | None = None
        self._signals: list[int] = []  # those that came before the fork was known

    def poll(self) -> int | None:
        """Return the exit status (-n after signal n); None: it runs."""
        for answer in self._forker.hear() if self._status is None else ():
            if "pid" in answer:
                self._pid = answer["pid"]
            elif self._status is None:
                self._status = answer["status"]
        if self._pid is not None and self._status is None:
            for number in self._signals:
                os.kill(self._pid, number)
            self._signals = []
        return self._status

    def send_signal(self, number: int) -> None:
        self._signals.append(number)
        self.poll()


def fork_on_request(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more."""
    for name in NEEDED:
        import_module(name)
    with suppress(UserError):
        check_recipe({}, "a recipe without keys")  # the first check builds pydantic's validators
    gc.freeze()  # a fork's collections then copy no page of the parent
    for line in requests:
        pid = os.fork()
        if pid == 0:
            exit_fork(carry_out(json.loads(line), (requests, answers)))
        answer(answers, pid=pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer(answers, status=status)


def carry_out(request: Mapping[str, Any], inherited: Sequence[IO[str]]) -> int:
    """Do in a fork what `python -m` does with the request's module and arguments; return the exit status."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file in inherited:
        os.close(file.fileno())
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    module = request["module"]
    sys.argv = [module, *request["arguments"]]
    try:
        package = hasattr(import_module(module), "__path__")
        return int(import_module(f"{module}.__main__" if package else module).main(request["arguments"]))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def answer(answers: IO[str], **values: int) -> None:
    """Write one line of JSON."""
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def exit_fork(status: int) -> NoReturn:
    """End a fork as multiprocessing ends its own: taking an interpreter of this size apart would take half a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    # The streams of requests and answers are copies, so that nothing that a module prints is taken for an answer.
    copies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    fork_on_request(*copies)
