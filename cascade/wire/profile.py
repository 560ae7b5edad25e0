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
        api_key: sent with every call as ``x-api-key``, unless it is empty; never printed.
        server_name: the name that the certificate must carry, where it is not the host of
            ``address``.
        certificate_pem, key_pem: this device's own certificate and private key (PEM), for clusters
            that ask for one.
        token_file: holds a token of an identity provider; read anew for each call.

    Raises:
        InvalidInput: the address is not ``host:port``, or of certificate and key one is missing.
    """

    address: str
    ca_pem: bytes | None
    api_key: str
    server_name: str | None = None
    certificate_pem: bytes | None = None
    key_pem: bytes | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        check_address(self.address)
        if (self.certificate_pem is None) != (self.key_pem is None):
            raise InvalidInput(
                "certificate_pem", "needs key_pem beside it, and the other way round"
            )

    def __repr__(self) -> str:
        return f"ClientProfile(address={self.address!r}, server_name={self.server_name!r})"

    def save(self, path: Path) -> None:
        """Write to ``path``, readable by the owner alone."""
        content = {
            "address": self.address,
            "ca_pem": _text(self.ca_pem),
            "api_key": self.api_key,
            "server_name": self.server_name,
            "certificate_pem": _text(self.certificate_pem),
            "key_pem": _text(self.key_pem),
            "token_file": None if self.token_file is None else str(self.token_file),
        }
        # What a profile does not have, it does not mention: older devices read it too.
        optional = ("certificate_pem", "key_pem", "token_file")
        content = {k: v for k, v in content.items() if k not in optional or v is not None}
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
            token_file = content.get("token_file")
            return cls(
                address=str(content["address"]),
                ca_pem=_pem(content["ca_pem"]),
                api_key=str(content["api_key"]),
                server_name=content["server_name"],
                certificate_pem=_pem(content.get("certificate_pem")),
                key_pem=_pem(content.get("key_pem")),
                # A relative path is one from the profile's own folder.
                token_file=None if token_file is None else path.absolute().parent / str(token_file),
            )
        except FileNotFoundError:
            raise NotFound(
                f"no client profile at {path}; start a cluster with `cascade cluster up`, "
                "or copy its client.json there"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidInput(
                "profile", f"{path} is not a client profile; `cascade cluster up` writes a new one"
            ) from None


def _pem(text: object) -> bytes | None:
    return None if text is None else str(text).encode("ascii")


def _text(pem: bytes | None) -> str | None:
    return None if pem is None else pem.decode("ascii")


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
