"""The signed word on what a channel serves: which artifacts, and as of which revision.

Devices refuse a revision below the last one that they have seen, so nobody between them and the
publisher can bring an old release back; going back is a new revision that names old artifacts.
The idea is that of The Update Framework's timestamped metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.strict import Fields

FORMAT: Final = "cascade-release"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """What is signed.

    Arguments:
        revision: of the channel, ≥ 1, rising.
        artifacts: digests of what is to run; empty where nothing is.
        expires: seconds since 1970 after which devices take nothing new from it; ``None`` never.
    """

    channel: str
    revision: int
    artifacts: tuple[str, ...]
    expires: int | None = None

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        value = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(data, "release")
        if fields.take("format") != FORMAT or fields.take("version") != VERSION:
            raise InvalidInput("release.format", f"is not {FORMAT} {VERSION}; upgrade the SDK")
        expires = fields.take("expires")
        release = cls(
            channel=fields.text("channel"),
            revision=fields.integer("revision", 1, 2**53),
            artifacts=fields.texts("artifacts"),
            expires=None
            if expires is None
            else Fields({"expires": expires}, "release").integer("expires", 0, 2**53),
        )
        fields.end()
        return release
