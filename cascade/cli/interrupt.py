"""Ctrl-C while modules load, and ``kill`` where Ctrl-C cannot be pressed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the program at once in here, where imports run and nothing needs clean-up.

    An interrupt raised inside of an import may get lost in a callback of the import system, or
    come out of an extension module as another error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C in here, inside a coroutine: it is cancelled, and what comes out is
    ``KeyboardInterrupt``. A shell's background jobs have SIGINT ignored, so that nobody could end
    them otherwise and have them clean up.
    """
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, terminated = asyncio.get_running_loop(), threading.Event()

    def end(running: asyncio.Task[object]) -> None:
        terminated.set()
        # Not an exception out of a handler: it might come between a row's write and its count.
        running.cancel()

    loop.add_signal_handler(signal.SIGTERM, end, task)
    try:
        yield
    except asyncio.CancelledError:
        if terminated.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ncascade: interrupted\n")
    os._exit(EXIT_CODE)
