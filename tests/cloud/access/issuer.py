"""An identity provider: signs tokens, and publishes its keys in a file or on the loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://login.test/"


class Issuer:
    """One key at a time, and those that it has published."""

    def __init__(self) -> None:
        self.published: dict[str, dict[str, object]] = {}
        self.asked = 0
        self.down = False
        self.rotate("k1")

    def rotate(self, key_id: str, *, publish: bool = True) -> None:
        """Sign with a new key from now on."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.key_id = key_id
        if publish:
            self.publish()

    def publish(self) -> None:
        """Add the key in use to those that are published."""
        entry = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.published[self.key_id] = {**entry, "kid": self.key_id, "use": "sig"}

    @property
    def jwks(self) -> bytes:
        return json.dumps({"keys": list(self.published.values())}).encode()

    def token(self, **claims: object) -> str:
        """A good token; ``claims`` change it, ``None`` leaves one out."""
        return jwt.encode(
            self.claims(**claims), self.key, algorithm="ES256", headers={"kid": self.key_id}
        )

    @staticmethod
    def claims(**claims: object) -> dict[str, object]:
        now = int(time.time())
        good = {"iss": ISSUER, "aud": "cascade", "sub": "phone", "exp": now + 60, "iat": now}
        return {name: value for name, value in (good | claims).items() if value is not None}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of its keys, on the loopback."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                if issuer.down:
                    self.send_error(503)
                    return
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/keys")
                    self.end_headers()
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(issuer.jwks)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def rsa_entry(key: rsa.RSAPrivateKey, key_id: str, **more: object) -> dict[str, object]:
    entry = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**entry, "kid": key_id, **more}


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def save(issuer: Issuer, path: Path) -> Path:
    path.write_bytes(issuer.jwks)
    return path
