"""The real front door on the loopback, with callers that show whatever a test wants."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cascade.errors import RemoteError
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Message, Request
from cascade.v1 import inference_pb2 as pb
from cascade.v1 import inference_pb2_grpc
from cascade.wire import (
    ArtifactSource,
    CallRecord,
    ClientProfile,
    GrpcRemote,
    KeyRing,
    OpenRequest,
    current_caller,
)
from cloud.config import GatewayConfig
from cloud.front_door import FrontDoor, GatewayFiles
from cloud.tls import TlsPaths

KEY = "a-key-for-tests"
FINISHED = Finished("stop", 3, 1, 0.25, "tier1", "model", None, ("lowest_tier",), 0.01)
Answer = Callable[[OpenRequest], AsyncGenerator[RemoteEvent]]


async def plain(request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
    """Answers with who called."""
    who = current_caller()
    yield Accepted("tier1", "model")
    yield Chunk(f"{who.name} by {who.kind}", 1)
    yield FINISHED


@dataclass
class Gate:
    """An open front door.

    Arguments:
        records: of calls that have ended.
        answering: calls that the answerer is busy with.
    """

    door: FrontDoor
    ca_pem: bytes
    files: GatewayFiles
    records: list[CallRecord] = field(default_factory=list)
    answering: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.door.port}"

    def profile(self, key: str = KEY, **more: object) -> ClientProfile:
        return ClientProfile(self.address, self.ca_pem, key, **more)  # type: ignore[arg-type]

    async def ask(self, profile: ClientProfile | None = None, prompt: str = "hello") -> str:
        """The text of an answer."""
        remote = GrpcRemote(profile or self.profile())
        try:
            request = Request((Message("user", prompt),))
            events = remote.answer(request, DeviceReport(), deadline_s=10.0, transfer=Transfer())
            return "".join([event.text async for event in events if isinstance(event, Chunk)])
        finally:
            await remote.close()

    async def refused(
        self, profile: ClientProfile | None = None, prompt: str = "hello"
    ) -> RemoteError:
        """How a call is refused."""
        with pytest.raises(RemoteError) as refusal:
            await self.ask(profile, prompt)
        assert "\n" not in refusal.value.message
        return refusal.value

    def channel(self, *options: tuple[str, int]) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        own = ("grpc.use_local_subchannel_pool", 1)
        return grpc.aio.secure_channel(self.address, credentials, options=[own, *options])


@asynccontextmanager
async def gate(
    tls: TlsPaths,
    folder: Path,
    answer: Answer = plain,
    /,
    artifacts: ArtifactSource | None = None,
    admit: Callable[[float], RemoteError | None] | None = None,
    **config: object,
) -> AsyncIterator[Gate]:
    """A front door that is open until the block ends; ``config`` as in the YAML under gateway."""
    files = GatewayFiles(
        tls.certificate,
        tls.key,
        folder / "api-keys",
        ca=tls.ca,
        quotas=folder / "quotas.sqlite",
        audit=folder / "audit.jsonl",
    )
    if not files.api_keys.exists():
        KeyRing().with_key("tests", KEY).save(files.api_keys)
    records: list[CallRecord] = []
    answerer = _Answerer(answer)
    door = FrontDoor(
        answerer,
        files,
        address="127.0.0.1:0",
        config=GatewayConfig.model_validate(config),
        artifacts=artifacts,
        on_call=records.append,
        admit=admit,
    )
    opened = Gate(door, tls.ca.read_bytes(), files, records)
    answerer.gate = opened
    await door.open()
    try:
        yield opened
    finally:
        await door.close(0.1)


class _Answerer:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.gate: Gate | None = None

    async def answer(self, request: OpenRequest) -> AsyncGenerator[RemoteEvent]:
        assert self.gate is not None
        self.gate.answering += 1
        try:
            async for event in self._answer(request):
                yield event
        finally:
            self.gate.answering -= 1


def open_message(text: str = "hello") -> pb.AnswerRequest:
    """A first message."""
    messages = pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=text)])
    opened = pb.Open(
        request_id="r1", messages=messages, constraints=pb.Constraints(max_remote_calls=1)
    )
    return pb.AnswerRequest(open=opened)


def call(
    channel: grpc.aio.Channel | grpc.Channel,
    messages: Iterable[pb.AnswerRequest] | AsyncIterator[pb.AnswerRequest] | None,
    *,
    timeout: float = 10.0,
    metadata: Sequence[tuple[str, str]] = (("x-api-key", KEY),),
):
    """A raw call of Answer; without messages, a stream to write to."""
    return inference_pb2_grpc.InferenceServiceStub(channel).Answer(
        messages, timeout=timeout, metadata=metadata
    )


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class Authority:
    """An operator's own certificate authority."""

    pem: bytes
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("an operator's authority")
        made = _unsigned(name, name, key, ends_in_s=3600).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        certificate = made.sign(key, hashes.SHA256())
        return cls(certificate.public_bytes(serialization.Encoding.PEM), certificate, key)

    def issue(
        self, name: str, *, san: Sequence[x509.GeneralName] = (), ends_in_s: float = 3600
    ) -> dict[str, bytes]:
        """A client certificate, as ``ClientProfile`` wants it."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _unsigned(_name(name), self.certificate.subject, key, ends_in_s=ends_in_s)
        if san:
            made = made.add_extension(x509.SubjectAlternativeName(san), critical=False)
        certificate = made.sign(self.key, hashes.SHA256())
        return {
            "certificate_pem": certificate.public_bytes(serialization.Encoding.PEM),
            "key_pem": key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        }


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, ends_in_s: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(seconds=ends_in_s))
    )
