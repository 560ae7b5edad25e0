"""A child that passes TCP connections on and counts their bytes, for any protocol alike: what is
counted is all that two sides say to each other, TLS, headers and polling included."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from benchmarks.child import Fields, serve

_PIECE = 1 << 16


class Relay:
    """What the parent may ask for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._bytes = {"up": 0, "down": 0}

    def open(self, port: int) -> Fields:
        """Listen in front of a port of this machine; where."""
        listening = asyncio.run_coroutine_threadsafe(self._listen(port), self._loop)
        return {"port": listening.result()}

    def passed(self) -> Fields:
        """Bytes so far: ``up`` to the port, ``down`` from it."""
        return dict(self._bytes)

    async def _listen(self, port: int) -> int:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(
                self._pass(reader, server_writer, "up"), self._pass(server_reader, writer, "down")
            )

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                self._bytes[way] += len(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()


def main() -> None:
    """Serve until standard input ends."""
    relay = Relay()
    serve(lambda: {"open": relay.open, "passed": relay.passed})


if __name__ == "__main__":
    main()
