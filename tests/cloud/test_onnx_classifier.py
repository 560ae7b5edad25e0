"""Digits: a small quantised model on the device, a larger one in a tier, and real calls between."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from cascade import home
from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.errors import ClusterError, InvalidInput, RemoteError
from cascade.policy import Policy, PolicyStore, Reason
from cascade.remote import DeviceReport, Transfer
from cascade.request import Constraints, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.task import of_labels
from cascade.tensor import pack
from cascade.wire import (
    AccessInterceptor,
    ApiKeys,
    CallRecord,
    ClientProfile,
    GrpcRemote,
    KeyRing,
    add_answerer,
)
from cloud.config import ClusterConfig, GatewayConfig, PriceList, TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Started, make_engine
from cloud.engines.onnx_classifier import OnnxClassifierEngine, bundle_folder, sample_request
from cloud.errors import ModelUnusable
from cloud.routing import Router
from cloud.tier import Refused, TierMessage
from cloud.tls import ensure_local_tls
from edge import AsyncDevice, Bundle, OnnxClassifier
from edge.build import build_classifier, rescaling
from tests.digits import LABELS, digits, quantised, trained

KEY = "a-key-for-tests"
ALPHA, DELTA = 0.05, 0.1
BLANK = np.zeros((8, 8), np.uint8)


@pytest.fixture(scope="module")
def publisher() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory, publisher: SigningKey) -> TrustStore:
    store = TrustStore(tmp_path_factory.mktemp("trust"))
    store.pin("tests", publisher.public)
    return store


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, publisher: SigningKey) -> Path:
    """A folder with ``digits-small`` and ``digits-large``."""
    folder = tmp_path_factory.mktemp("bundles")
    small, large = quantised(trained(8)), trained(128)
    for name, model in (("digits-small", small), ("digits-large", large)):
        build_classifier(
            model,
            folder / name,
            labels=LABELS,
            preprocessor=rescaling("pixels", "uint8", (8, 8), scale=1 / 16, reshape=(64,)),
            signing_key=publisher,
        )
    return folder


@pytest.fixture(scope="module")
def small(bundles: Path, trust: TrustStore) -> OnnxClassifier:
    return OnnxClassifier(Bundle.open(bundles / "digits-small", trust))


@pytest.fixture
async def engine(bundles: Path, trust: TrustStore) -> AsyncIterator[OnnxClassifierEngine]:
    engine = OnnxClassifierEngine(str(bundles / "digits-large"), trust=trust)
    await engine.start()
    yield engine
    await engine.close()


def asking(row: int, **fields: object) -> ChatRequest:
    request = ChatRequest((), 1, LABELS, tensors=pack({"pixels": digits().images[row]}))
    return replace(request, **fields)  # type: ignore[arg-type]


async def collect(engine: OnnxClassifierEngine, request: ChatRequest) -> list[EngineEvent]:
    return [event async for batch in engine.stream(request) for event in batch]


async def test_the_engine_gives_one_label(engine: OnnxClassifierEngine) -> None:
    row = int(digits().train[0])
    label = digits().labels[row]
    events = await collect(engine, asking(row))
    assert events == [Started(0), Piece(label, 1), Done("stop", 0, 1, 0)]
    done = (await collect(engine, asking(row, score=True)))[-1]
    assert isinstance(done, Done)
    assert done.raw_score is not None
    assert 0.5 < done.raw_score <= 1
    assert await engine.reset_prefix_cache() == 0
    assert engine.capabilities.options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensors": pack({"pixels": BLANK[:4]})}, r"tensors\.pixels: has the shape \[4, 8\]"),
        ({"options": ("yes", "no")}, "options: must be the labels of digits-large"),
        ({"tensors": (), "messages": (Message("user", "hello"),)}, "prompt: is text"),
    ],
)
async def test_the_engine_refuses_by_name_and_goes_on(
    engine: OnnxClassifierEngine, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await collect(engine, asking(0, **fields))
    assert len(await collect(engine, asking(0))) == 3


async def test_a_bundle_that_nobody_here_trusts_does_not_start(
    bundles: Path, tmp_path: Path
) -> None:
    engine = OnnxClassifierEngine(str(bundles / "digits-large"), trust=TrustStore(tmp_path))
    with pytest.raises(ModelUnusable, match=r"digits-large cannot be used: .*unknown publisher"):
        await engine.start()


def test_a_tier_names_its_bundle_by_name_or_folder(
    bundles: Path, publisher: SigningKey, empty_home: Path
) -> None:
    TrustStore(home.trust_dir()).pin("tests", publisher.public)
    home.bundles_dir().mkdir(parents=True)
    (home.bundles_dir() / "digits-large").symlink_to(bundles / "digits-large")
    by_name = tier(home.bundles_dir().name)
    for model in ("digits-large", str(bundles / "digits-large")):
        folder = bundle_folder(tier(model))
        assert folder.name == tier(model).model_name == "digits-large"
        request = sample_request(folder)
        assert request is not None
        request.check()
    with pytest.raises(ClusterError, match="tier digits: there is no bundle at"):
        bundle_folder(by_name)


def tier(model: str, **fields: object) -> TierConfig:
    return TierConfig(name="digits", engine="onnx_classifier", model=model, **fields)  # type: ignore[arg-type]


class Cluster:
    """The gateway's own server and router on a free port, over TLS; the tier is in this process."""

    def __init__(self, config: ClusterConfig, engine: OnnxClassifierEngine, folder: Path) -> None:
        async def stream(request: ChatRequest) -> AsyncGenerator[TierMessage]:
            try:
                async with aclosing(engine.stream(request)) as batches:
                    async for batch in batches:
                        yield batch
            except InvalidInput as error:
                yield Refused(error.field, error.problem)

        self.records: list[CallRecord] = []
        ring = KeyRing().with_key("tests", KEY)
        self.server = grpc.aio.server(interceptors=[AccessInterceptor([ApiKeys(lambda: ring)])])
        router = Router(config, {each.name: stream for each in config.tiers})
        add_answerer(self.server, router, on_call=self.records.append)
        tls = ensure_local_tls(folder, "127.0.0.1")
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
        port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.profile = ClientProfile(f"127.0.0.1:{port}", tls.ca.read_bytes(), KEY)


Start = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start(engine: OnnxClassifierEngine, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a cluster of the given tiers."""
    started: list[Cluster] = []

    async def start(*tiers: TierConfig, **limits: int) -> Cluster:
        config = ClusterConfig(gateway=GatewayConfig(**limits), tiers=tiers)
        cluster = Cluster(config, engine, tmp_path / f"tls-{len(started)}")
        await cluster.server.start()
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        await cluster.server.stop(0)


LARGE = tier("digits-large", price=PriceList(output_usd_per_million_tokens=2.0))
TEXT = TierConfig(name="text", model="a-text-model")


@pytest.fixture
def policies(
    small: OnnxClassifier, publisher: SigningKey, trust: TrustStore, tmp_path: Path
) -> PolicyStore:
    """A store with the policy of the task ``digits``, certified on real answers."""
    data = digits()

    def answered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers = [small.classify(pack({"pixels": data.images[row]})) for row in rows]
        right = [each.text == data.labels[row] for each, row in zip(answers, rows, strict=True)]
        return np.array([each.raw_score for each in answers]), np.array(right)

    score, right = answered(data.develop)
    confidence = fit_platt(score, right)
    rows = len(data.certify)
    grid = plan_grid(confidence.batch(score), right, rows=rows, alpha=ALPHA, delta=DELTA)
    score, right = answered(data.certify)
    certificate = certify(confidence.batch(score), right, alpha=ALPHA, delta=DELTA, grid=grid)
    policy = Policy(
        task=of_labels("digits", small.labels),
        base_digest=small.info.base_digest,
        adapter_digest="",
        confidence=confidence,
        threshold=certificate.threshold,
        certificate=certificate,
    )
    store = PolicyStore(tmp_path / "policies", trust)
    store.install(policy, publisher)
    # What travels is the file; the confidence and its threshold come back from it.
    return PolicyStore(tmp_path / "policies", trust)


async def test_the_cascade_is_better_than_the_device_and_asks_for_little(
    start: Start, small: OnnxClassifier, policies: PolicyStore
) -> None:
    """Of 397 test images, each really sent when the device is not sure enough."""
    cluster = await start(TEXT, LARGE)
    data = digits()
    answers, alone = [], []
    async with AsyncDevice(small, GrpcRemote(cluster.profile), policies) as device:
        for row in data.test:
            answers.append(await device.classify({"pixels": data.images[row]}, task="digits"))
            alone.append(small.classify(pack({"pixels": data.images[row]})).text)
    wanted = [data.labels[row] for row in data.test]
    right = [answer.text == label for answer, label in zip(answers, wanted, strict=True)]
    right_alone = [text == label for text, label in zip(alone, wanted, strict=True)]
    local = [answer for answer in answers if answer.local]
    sent = [answer for answer in answers if not answer.local]
    assert np.mean(right) > np.mean(right_alone) > 0.8
    assert len(local) > len(sent) > 0
    assert {answer.reasons for answer in local} == {(Reason.CONFIDENT,)}
    assert {answer.reasons for answer in sent} == {
        (Reason.UNSURE, "text:reads_text", "lowest_allowed_tier")
    }
    assert all(answer.verified and answer.device_confidence is not None for answer in answers)
    assert len(cluster.records) == len(sent)
    assert {answer.cost_usd for answer in sent} == {2e-6}
    # The 64 bytes of the image, the ten labels, the device's report, and little else.
    assert all(64 < answer.bytes_up < 600 for answer in sent)


async def ask(cluster: Cluster, request: Request) -> str:
    remote = GrpcRemote(cluster.profile)
    try:
        text = ""
        async for event in remote.answer(
            request, DeviceReport(), deadline_s=10.0, transfer=Transfer()
        ):
            text += getattr(event, "text", "")
        return text
    finally:
        await remote.close()


IMAGE = Request((), options=LABELS, tensors=pack({"pixels": BLANK}))
QUESTION = Request((Message("user", "hello"),))


@pytest.mark.parametrize(
    ("tiers", "request_", "status", "message"),
    [
        ((TEXT,), IMAGE, "FAILED_PRECONDITION", "reads tensors: text reads text"),
        ((LARGE,), QUESTION, "FAILED_PRECONDITION", "reads text: digits reads tensors"),
        (
            (TEXT, LARGE),
            replace(IMAGE, constraints=Constraints(allowed_tiers=frozenset({"text"}))),
            "FAILED_PRECONDITION",
            r"text:reads_text, digits:not_allowed",
        ),
        (
            (LARGE,),
            replace(IMAGE, tensors=pack({"pixels": BLANK.astype(np.float32)})),
            "INVALID_ARGUMENT",
            r"tensors\.pixels: is float32; digits-large takes uint8",
        ),
        (
            (LARGE,),
            replace(IMAGE, tensors=pack({"pixels": np.zeros((100, 100), np.uint8)})),
            "INVALID_ARGUMENT",
            "tensors: hold 10000 bytes; this cluster reads at most 5000",
        ),
        (
            (LARGE,),
            replace(IMAGE, tensors=pack({"pixels": np.zeros(5_000_000, np.uint8)})),
            "INVALID_ARGUMENT",
            "a cluster reads at most 4,194,304",
        ),
        (
            (LARGE,),
            replace(IMAGE, constraints=Constraints(max_cost_usd=1e-6)),
            "FAILED_PRECONDITION",
            "digits:cost",
        ),
    ],
)
async def test_what_a_cluster_cannot_answer_it_refuses_in_one_line(
    start: Start, tiers: tuple[TierConfig, ...], request_: Request, status: str, message: str
) -> None:
    cluster = await start(*tiers, max_tensor_bytes=5000)
    with pytest.raises(RemoteError, match=message) as refused:
        await ask(cluster, request_)
    assert refused.value.status == status
    assert "\n" not in str(refused.value)
    if LARGE in tiers:
        assert await ask(cluster, IMAGE) in LABELS


async def test_the_device_answers_unverified_where_no_tier_can(
    start: Start, small: OnnxClassifier, policies: PolicyStore
) -> None:
    cluster = await start(TEXT)
    async with AsyncDevice(small, GrpcRemote(cluster.profile), policies) as device:
        answer = await device.classify({"pixels": BLANK}, prefer="device")
    assert (answer.local, answer.verified) == (True, False)
    assert answer.reasons == (Reason.UNCERTIFIED_TASK, Reason.REMOTE_FAILED)
    assert answer.remote_status == "FAILED_PRECONDITION"


async def test_a_device_without_a_model_names_the_labels(start: Start) -> None:
    cluster = await start(LARGE)
    async with AsyncDevice(None, GrpcRemote(cluster.profile)) as device:
        answer = await device.classify({"pixels": digits().images[0]}, labels=LABELS)
    assert (answer.text, answer.source) == ("0", "digits")


def test_the_engine_is_made_by_its_name(bundles: Path) -> None:
    assert isinstance(make_engine(LARGE, str(bundles)), OnnxClassifierEngine)
