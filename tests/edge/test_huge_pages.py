"""Only memory that came meanwhile is advised, and its content stays."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from edge.huge_pages import new_memory, use_huge_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and calls madvise")

SIZE = 32 << 20


def address(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def covers(ranges: list[tuple[int, int]], start: int, size: int) -> bool:
    return sum(max(0, min(end, start + size) - max(begin, start)) for begin, end in ranges) == size


def test_memory_that_came_meanwhile_is_found_and_older_memory_is_not():
    older = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with new_memory() as ranges:
        newer = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert covers(ranges, address(newer), SIZE)
    assert not any(begin < address(older) + SIZE and end > address(older) for begin, end in ranges)


def test_the_content_stays():
    with new_memory() as ranges:
        memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(memory, np.uint32)
    values[:] = np.arange(len(values))
    thread = use_huge_pages(ranges)
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
    assert np.array_equal(values, np.arange(len(values)))


def test_small_ranges_are_left_alone():
    assert use_huge_pages([(4096, 8192)]) is None
    assert use_huge_pages([]) is None
