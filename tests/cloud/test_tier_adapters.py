"""Adapters that a tier's YAML names in the registry: found, checked, pinned, fetched, refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cascade import home
from cascade.cli import main
from cascade.errors import ClusterError
from cascade.request import Constraints
from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle
from cascade.wire import OpenRequest
from cloud.adapter_source import InRegistry, in_registry
from cloud.config import ClusterConfig, load_config, parse_config
from cloud.engines import make_engine
from cloud.errors import ModelUnusable, NoTierAllowed
from cloud.ladder import choose_tier
from cloud.plan import plan_cluster
from cloud.registry import Needs, Published, Registry
from cloud.tier import Tier
from cloud.tier_adapters import checked, look_up, start_with
from edge.adapter import LoraPair, write_adapter
from edge.bundle import Bundle
from tests.cloud.test_adapters import ASKED, answer

RESEARCH = "CC-BY-NC-4.0"


class World:
    """A registry with the tiny bundle, whose publisher is pinned on this machine."""

    def __init__(self, tiny: TinyBundle, folder: Path, url: str) -> None:
        self.tiny, self.folder = tiny, folder
        self.registry = Registry(url)
        self.trust = TrustStore(home.trust_dir())
        self.trust.pin("maker", tiny.key.public)
        self.put(tiny.path)

    def put(
        self,
        path: Path,
        channel: str = "stable",
        needs: Needs = Needs(),  # noqa: B008 - a frozen value
        key: SigningKey | None = None,
        expires: int | None = None,
    ) -> Published:
        published = self.registry.publish(path, self.trust)
        before = self.registry.channel(channel)
        known = {digest: self.registry.artifact(digest).artifact for digest in before.named}
        after, _ = before.with_artifact(published.artifact, known, needs=needs, percent=None)
        self.registry.save(after, key or self.tiny.key, expires)
        return published

    def roll_back(self, steps: int = 1, channel: str = "stable") -> None:
        for _ in range(steps):
            self.registry.save(self.registry.channel(channel).rolled_back(Needs()), self.tiny.key)

    def lesson(
        self,
        name: str,
        seed: int = 0,
        *,
        version: int = 1,
        licence: str = "Apache-2.0",
        base: str = "",
        key: SigningKey | None = None,
    ) -> Path:
        manifest = self.tiny.bundle.manifest
        slot = next(slot for slot in manifest.adapter_slots if len(slot.modules) == 1)
        draws = np.random.default_rng(seed)
        a = draws.normal(size=(slot.columns, 4)).astype(np.float32)
        b = draws.normal(size=(4, slot.widths[0])).astype(np.float32)
        return write_adapter(
            self.folder / f"{name}-{seed}-{version}",
            {slot.modules[0]: LoraPair(a, b)},
            name=name,
            base_digest=base or manifest.base_digest,
            signing_key=key or self.tiny.key,
            version=version,
            licence=licence,
        )

    def config(self, more: str = "", *, top: str = "", **adapters: str) -> ClusterConfig:
        listed = json.dumps(adapters)
        text = (
            f"{top}\ngateway: {{registry: '{self.registry.url}'}}\ntiers:\n"
            f"  - {{name: tuned, engine: onnx, model: {self.tiny.path}, adapters: {listed}{more}}}"
        )
        return parse_config(text, "f.yaml")

    def problem(self, source: str, **more: str) -> str:
        config = self.config(**more, tax=source)
        with pytest.raises(ClusterError) as refused:
            checked(config)
        (line,) = plan_cluster(config).problems
        assert line == str(refused.value)
        return line.removeprefix("tier tuned: adapter tax: ")


@pytest.fixture(params=["folder", "memory"])
def world(
    request: pytest.FixtureRequest,
    tiny: TinyBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "home"))
    url = str(tmp_path / "registry") if request.param == "folder" else "memory://adapters"
    yield World(tiny, tmp_path, url)
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/adapters", recursive=True)


@pytest.fixture
def here(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same in a folder alone."""
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "home"))
    return World(tiny, tmp_path, str(tmp_path / "registry"))


def test_a_name_at_a_channel_and_a_digest_are_of_the_registry_and_all_else_is_a_path() -> None:
    assert in_registry("tax.v1@stable") == InRegistry(name="tax.v1", channel="stable")
    assert in_registry("a" * 64) == InRegistry(digest="a" * 64)
    for path in ("./tax@stable", "tax", "a/b@stable", "A" * 64, "a" * 63, "x@y@z", "@stable"):
        assert in_registry(path) is None


async def test_a_replica_starts_with_what_the_channel_served_when_the_cluster_was_built(
    world: World,
) -> None:
    first = world.put(world.lesson("tax", 1))
    other = world.registry.publish(world.lesson("legal", 2), world.trust)  # on no channel
    config = world.config(tax="tax@stable", legal=other.artifact.digest)
    (tax, legal) = look_up(config, config.tiers[0])
    assert (tax.digest, tax.publisher, tax.licence) == (
        first.artifact.digest,
        "maker",
        "Apache-2.0",
    )
    assert (tax.base, tax.problem, tax.commercial_use) == ("checked", "", True)
    assert legal.digest == other.artifact.digest
    digests = checked(config).digests("tuned")
    assert digests == {"tax": tax.digest, "legal": legal.digest}
    assert parse_config(config.yaml(), "again.yaml") == config  # the file that it writes reads back

    world.put(world.lesson("tax", 3, version=2))
    assert look_up(config, config.tiers[0])[0].digest != tax.digest
    here = start_with(config.tiers[0], digests, world.registry.url, world.folder)
    assert here.adapters.keys() == set(digests.values())
    by_path = config.tiers[0].model_copy(
        update={
            "adapters": {
                tax.digest: str(world.folder / "tax-1-1"),
                legal.digest: str(world.folder / "legal-2-1"),
            }
        }
    )
    answers = []
    for tier in (here, by_path):
        engine = make_engine(tier, str(world.tiny.path))
        await engine.start()
        answers.append([await answer(engine, name) for name in (tax.digest, legal.digest, "")])
        await engine.close()
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


async def test_a_replica_fetches_what_its_node_lacks_once_and_mends_what_is_damaged(
    here: World,
) -> None:
    digest = here.put(here.lesson("tax", 1)).artifact.digest
    (tier,) = here.config(tax="tax@stable").tiers

    class Replica(Tier):
        def __del__(self) -> None:  # type: ignore[override]
            """Ray Serve awaits the real one, as the test does."""

    async def answers() -> str:
        replica = Replica.__new__(Replica)
        await replica.__init__(  # type: ignore[misc]
            tier, str(here.tiny.path), registry=here.registry.url, digests={"tax": digest}
        )
        try:
            return await answer(replica._engine, digest)
        finally:
            await Tier.__del__(replica)

    told = await answers()
    folder = home.cluster_dir() / "adapters" / digest
    written = folder.stat().st_mtime_ns
    assert (await answers(), folder.stat().st_mtime_ns) == (told, written)
    weights = folder / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert (await answers(), weights.read_bytes()) == (told, whole)
    assert {path.name for path in folder.parent.iterdir()} == {digest}


def test_a_home_that_cannot_be_written_is_none_to_fetch_into(here: World) -> None:
    digest = here.put(here.lesson("tax", 1)).artifact.digest
    config = here.config(tax="tax@stable")
    home.cluster_dir().write_bytes(b"")  # a file, where a folder would have to be made
    scratch = here.folder / "scratch"
    scratch.mkdir()
    digests = checked(config).digests("tuned")  # its memory cannot be written either
    adapters = start_with(config.tiers[0], digests, here.registry.url, scratch).adapters
    assert adapters == {digest: str(scratch / digest)}
    assert [path.name for path in scratch.iterdir()] == [digest]


def test_what_was_altered_in_the_registry_is_not_served(here: World) -> None:
    published = here.put(here.lesson("tax", 1))
    config = here.config(tax="tax@stable")
    digests = checked(config).digests("tuned")
    (sha256, _) = published.files["adapter.safetensors"]
    weights = Path(here.registry.url) / "files" / sha256
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelUnusable, match=r"adapter tax: .*altered after signing"):
        start_with(config.tiers[0], digests, here.registry.url, here.folder)
    assert not [*(home.cluster_dir() / "adapters").iterdir()]  # nothing of it is kept
    weights.unlink()
    assert here.problem("tax@stable") == f"the registry has no file {sha256[:12]}…"
    # One that is named by its digest must be there; what a channel once served may be gone.
    (named,) = here.config(tax=published.artifact.digest).tiers
    with pytest.raises(ModelUnusable, match="adapter tax: the registry has no file"):
        start_with(named, digests, here.registry.url, here.folder)
    left = start_with(config.tiers[0], digests, here.registry.url, here.folder)
    assert left.adapters == {}


def test_what_must_not_be_served_is_said_before_anything_starts(here: World) -> None:
    assert "channel stable serves no adapter called tax; adapters: none" in here.problem(
        "tax@stable"
    )
    here.put(here.lesson("legal", 1))
    assert "no adapter called tax; adapters: legal" in here.problem("tax@stable")
    assert "channel canary serves nothing to everybody" in here.problem("legal@canary")
    assert "the registry has no artifact aaaaaaaaaaaa…" in here.problem("a" * 64)
    bundle = Bundle.open(here.tiny.path, here.trust).digest
    assert here.problem(bundle) == f"{bundle} is a bundle"
    elsewhere = here.registry.publish(here.lesson("far", base="0" * 64), here.trust)
    assert "is for the base 000000000000…, and tiny" in here.problem(elsewhere.artifact.digest)


def test_two_variants_with_one_name_ask_for_a_digest(here: World) -> None:
    large = Needs(memory_bytes=1 << 30)
    here.put(here.tiny.path, needs=large)
    digests = {
        here.put(here.lesson("tax", seed), needs=needs).artifact.digest
        for seed, needs in enumerate((Needs(), large))
    }
    problem = here.problem("tax@stable")
    assert "serves several adapters called tax; name one by its digest" in problem
    assert all(digest in problem for digest in digests)
    assert checked(here.config(tax=digests.pop()))


def test_only_pinned_publishers_are_believed(here: World) -> None:
    stranger = SigningKey.generate()
    trusting = TrustStore(here.folder / "trusting")
    trusting.pin("stranger", stranger.public)
    path = here.lesson("tax", 1, key=stranger)
    digest = here.registry.publish(path, trusting).artifact.digest
    assert "unknown publisher" in here.problem(digest)
    # Signed by one who is pinned, on a channel that is not.
    here.put(here.lesson("legal", 1), key=stranger)
    assert "channel stable is signed by the unknown publisher" in here.problem("legal@stable")


def test_a_channel_that_has_expired_or_was_exchanged_is_not_believed(here: World) -> None:
    here.put(here.lesson("tax", 1), expires=1)
    assert "channel stable has expired" in here.problem("tax@stable")
    here.put(here.lesson("tax", 2, version=2))
    channels = Path(here.registry.url) / "channels"
    shutil.copy(channels / "stable.json", channels / "beta.json")
    assert "signed for another one" in here.problem("tax@beta")


def test_a_record_that_was_exchanged_is_noticed(here: World) -> None:
    digest = here.put(here.lesson("tax", 1)).artifact.digest
    other = here.registry.publish(here.lesson("legal", 2), here.trust).artifact.digest
    records = Path(here.registry.url) / "artifacts"
    record = json.loads((records / f"{digest}.json").read_text())
    # What is not signed does not count.
    lied = record | {"licence": "MIT", "base_digest": "0" * 64, "name": "x"}
    (records / f"{digest}.json").write_text(json.dumps(lied))
    config = here.config(tax="tax@stable")
    (tax,) = look_up(config, config.tiers[0])
    assert (tax.problem, tax.licence, tax.base) == ("", "Apache-2.0", "checked")
    shutil.copy(records / f"{other}.json", records / f"{digest}.json")
    assert "another one than its digest" in here.problem(digest)


def test_a_research_adapter_is_not_sold(here: World) -> None:
    path = here.lesson("tax", 1, licence=RESEARCH)
    digest = here.put(path).artifact.digest
    sold = ", commercial_use: true"
    for source in ("tax@stable", digest, str(path)):
        config = here.config(sold, top="commercial: true", tax=source)
        expected = f"{RESEARCH}, the licence of the adapter tax .*does not allow that; take it out"
        with pytest.raises(ClusterError, match=expected):
            checked(config)
        (line,) = plan_cluster(config).problems
        assert RESEARCH in line
        # Elsewhere it is served, but to nobody who asks for something that is sold.
        free = here.config(sold, tax=source, legal=str(here.lesson("legal", 2)))
        notes = plan_cluster(free).notes
        assert any(f"with its adapter tax: {RESEARCH}, its licence" in note for note in notes)
        adapters = checked(free)
        for_money = Constraints(commercial=True)
        for name in ("", "legal"):
            request = OpenRequest("r", ASKED, adapter=name, constraints=for_money)
            assert choose_tier(free.tiers, request, adapters).tier.name == "tuned"
        with pytest.raises(NoTierAllowed, match=f"{RESEARCH}, the licence of the adapter tax"):
            choose_tier(
                free.tiers, OpenRequest("r", ASKED, adapter="tax", constraints=for_money), adapters
            )
    fine = here.config(sold, top="commercial: true", legal=str(here.lesson("legal", 2)))
    assert checked(fine).digests("tuned").keys() == {"legal"}


def test_the_check_prints_them(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    digest = here.put(here.lesson("tax", 1)).artifact.digest
    (here.folder / "registry-is-here.yaml").write_text(
        "gateway: {registry: ./registry}\n"
        "tiers:\n"
        f"  - {{name: tuned, engine: onnx, model: {here.tiny.path}, most_adapters: 1,\n"
        f"     adapters: {{tax: tax@stable, old: {digest}, lost: x@stable, here: ./tax-1-1}}}}\n"
    )
    assert main(["cluster", "check", str(here.folder / "registry-is-here.yaml")]) == 7
    shown = capsys.readouterr().out
    indent = " " * 9
    signed = f"{indent}signed by maker · Apache-2.0 · for this base\n"
    assert f"adapter tax: tax@stable\n{indent}digest {digest}\n{signed}" in shown
    assert f"adapter old: {digest}\n{signed}" in shown
    assert f"tax-1-1\n{indent}digest {digest}\n{signed}" in shown
    assert "missing  tier tuned: adapter lost: channel stable serves no adapter called x" in shown


def test_paths_are_found_beside_the_file_and_names_of_a_registry_stay(here: World) -> None:
    file = here.folder / "c.yaml"
    file.write_text(
        "gateway: {registry: ./registry}\n"
        "tiers: [{name: t, engine: onnx, model: ./b, adapters: {a: x@stable, b: ./x@stable}}]\n"
    )
    (tier,) = load_config(file).tiers
    assert tier.adapters == {"a": "x@stable", "b": str(here.folder / "x@stable")}
    assert tier.files_of_adapters == {"b": str(here.folder / "x@stable")}
    assert dataclasses.replace(look_up(load_config(file), tier)[1], problem="").digest == ""
