"""What a device needs to know to reach one cluster: address, certificate authority, API key.

``cluster up`` writes it; a copy of the file lets another device in. Nothing connects here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import InvalidInput, NotFound
from cascade.files import write_whole
from cascade.home import cluster_dir


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """How to reach a cluster.

    Arguments:
        address: ``host:port`` of the gateway.
        ca_pem: PEM certificates that the server's certificate must descend from; ``None`` trusts
            the public authorities that gRPC ships with. The connection is encrypted either way.
        api_key: sent with every call as ``x-api-key``; never printed.
        server_name: the name that the certificate must carry, where it is not the host of
            ``address``.
    """

    address: str
    ca_pem: bytes | None
    api_key: str
    server_name: str | None = None

    def __post_init__(self) -> None:
        check_address(self.address)

    def __repr__(self) -> str:
        return f"ClientProfile(address={self.address!r}, server_name={self.server_name!r})"

    def save(self, path: Path) -> None:
        """Write to ``path``, readable by the owner alone."""
        content = {
            "address": self.address,
            "ca_pem": None if self.ca_pem is None else self.ca_pem.decode("ascii"),
            "api_key": self.api_key,
            "server_name": self.server_name,
        }
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode(), private=True)

    @classmethod
    def load(cls, path: Path | None = None) -> ClientProfile:
        """Read a profile; by default the one that ``cascade cluster up`` wrote.

        Raises:
            NotFound: there is no such file.
            InvalidInput: it is not a profile.
        """
        path = path or profile_path()
        try:
            content = json.loads(path.read_text())
            ca_pem = content["ca_pem"]
            return cls(
                address=str(content["address"]),
                ca_pem=None if ca_pem is None else str(ca_pem).encode("ascii"),
                api_key=str(content["api_key"]),
                server_name=content["server_name"],
            )
        except FileNotFoundError:
            raise NotFound(
                f"no client profile at {path}; start a cluster with `cascade cluster up`, "
                "or copy its client.json there"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise InvalidInput(
                "profile", f"{path} is not a client profile; `cascade cluster up` writes a new one"
            ) from None


def profile_path() -> Path:
    """Where ``cascade cluster up`` leaves the profile of this machine's own cluster."""
    return cluster_dir() / "client.json"


def check_address(address: str) -> None:
    """Raise ``InvalidInput`` unless ``address`` is ``host:port``; IPv6 hosts in brackets."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise InvalidInput("address", f"{address!r} is not host:port, e.g. 127.0.0.1:7443")
    if not 1 <= int(port) <= 65535:
        raise InvalidInput("address", f"port {port} is not in 1 … 65535")
