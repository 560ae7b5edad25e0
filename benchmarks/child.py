"""The child's side of a conversation in JSON lines: requests on standard input, one reply a line.

Standard library only: children run in the peers' environments. ``benchmarks.peers`` is the parent's
side.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]
"""A JSON object; children and parents are of one version."""


def serve(open_handlers: Callable[[], Mapping[str, Callable[..., Fields]]]) -> None:
    """Answer requests ``{"do": NAME, …}`` until standard input ends.

    Arguments:
        open_handlers: loads the model and returns a function for each NAME, called with the
            request's other fields as keywords.
    """
    # Libraries print; replies must not get mixed up with that.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    handlers = open_handlers()
    for line in sys.stdin:
        request = json.loads(line)
        reply = handlers[request.pop("do")](**request)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def timed(work: Callable[[], object]) -> Fields:
    """What ``work`` took, as ``{"cpu_s", "wall_s"}``."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
