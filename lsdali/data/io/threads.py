"""A few threads that read ahead. They are daemons: the end of a process waits for no disk and no network."""

import os
import queue
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
READERS = 4  # batches read at a time


@cache
def _work() -> "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]":
    """Start the threads; return what they take their work from."""
    tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def reader() -> None:
        while True:
            future, call = tasks.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(READERS):
        Thread(target=reader, daemon=True).start()
    return tasks


os.register_at_fork(after_in_child=_work.cache_clear)  # threads do not come along


def in_thread(call: Callable[[], T]) -> "Future[T]":
    """Let one of the threads make a call; the first asked for is the first begun."""
    future: Future[T] = Future()
    _work().put((future, call))
    return future
