"""The parent's side of a child process that answers in JSON lines; ``benchmarks.child`` is the
child's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.child import Fields
from benchmarks.peers.environment import PeerUnavailable
from benchmarks.timing import Sample

_ROOT = Path(__file__).resolve().parents[2]
_END_S = 10.0


class Child:
    """A running child. Use it as a context manager: it ends with the block.

    Arguments:
        module: what runs, e.g. ``"benchmarks.peers.xllamacpp"``.
        arguments: its command line.
        python: the interpreter; ours by default.
    """

    def __init__(self, module: str, *arguments: str | Path, python: Path | None = None) -> None:
        self._module = module
        self._log = tempfile.TemporaryFile(  # noqa: SIM115 - closed with the child
            "w+", encoding="utf-8", errors="replace"
        )
        paths = [str(_ROOT)] if python else [str(_ROOT), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # One thread, and none that spins, whatever the peer links.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            # Ctrl-C is for the parent, which ends its children in order.
            start_new_session=True,
        )

    def ask(self, do: str, **fields: object) -> Fields:
        """Send a request and wait for its reply.

        Raises:
            PeerUnavailable: the child has ended; its last line says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        reply: Fields = json.loads(line)
        return reply

    def time(self, do: str, **fields: object) -> Sample:
        """``ask``, and what the child says it took."""
        reply = self.ask(do, **fields)
        return Sample(float(reply["cpu_s"]), float(reply["wall_s"]))

    def close(self) -> None:
        """End the child; by force where it does not listen."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for end in (None, process.terminate, process.kill):
            if end is not None:
                end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
                break
        if process.stdout is not None:
            process.stdout.close()
        self._log.close()

    def _failure(self) -> PeerUnavailable:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return PeerUnavailable(f"{self._module} ended ({code}): {lines[-1] if lines else 'silent'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._process.kill()  # Ctrl-C does not wait for a measurement to end
        self.close()
