"""Ctrl-C while modules load."""

from __future__ import annotations

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


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ncascade: interrupted\n")
    os._exit(EXIT_CODE)
