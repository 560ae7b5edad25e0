"""The small parts: windows that grow with the fleet, plan, configuration, command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cascade.cli import main
from cascade.errors import InvalidInput
from cascade.federation.plan import RoundPlan
from cloud import plan_cluster
from cloud.config import parse_config
from cloud.errors import ConfigError
from cloud.federation.chosen import chosen_strategy, read_state, write_state
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.federation.database import Database
from cloud.federation.optimisers import State
from cloud.federation.pace import Pace
from cloud.federation.privacy import PrivateMean
from cloud.federation.robust import Median
from cloud.federation.strategies import FfaLora, ProductMean
from tests.cloud.federation.federated import BareDevice, Federation, payload

NOISE = np.random.default_rng(0)
ADAPTER = {
    f"layers.{layer}.q_proj.{part}": shape
    for layer in range(3)
    for part, shape in (("a", (8, 2)), ("b", (2, 8)))
} | {"head": (4,)}
YAML = """
gateway:
  registry: registry
tiers:
  - name: tier1
    model: qwen2.5-coder-0.5b-instruct-q4_k_m
federation:
  adapter: {adapter}
  signing_key: publisher.key
  goal: 4
  minimum: 3
"""


def test_the_window_grows_with_the_fleet_and_shrinks_again() -> None:
    now = 0.0
    pace = Pace((10.0, 20.0), 2.0, now=lambda: now)
    assert pace.window().latest_s == 20.0
    for _ in range(999):
        window = pace.window()
    # A thousand in a minute, two a second: they need 500 s.
    assert (window.earliest_s, window.latest_s) == (10.0, 510.0)
    now = 61.0
    assert pace.window().latest_s == 510.0
    now = 200.0
    assert pace.window().latest_s == 20.0
    assert pace.window(3600.0).earliest_s == 3600.0


def test_a_plan_names_what_is_trained() -> None:
    last = RoundPlan(layers=2, trained="b", bits=32)
    assert sorted(last.shapes(ADAPTER)) == ["head", "layers.1.q_proj.b", "layers.2.q_proj.b"]
    both = RoundPlan(layers=1, trained="both")
    assert sorted(both.shapes(ADAPTER)) == ["head", "layers.2.q_proj.a", "layers.2.q_proj.b"]
    assert RoundPlan.from_bytes(last.to_bytes()) == last
    with pytest.raises(InvalidInput, match="nothing"):
        last.shapes({"layers.0.q_proj.a": (8, 2)})
    with pytest.raises(InvalidInput, match=r"plan\.more"):
        RoundPlan.from_bytes(json.dumps({**json.loads(last.to_bytes()), "more": 1}).encode())
    with pytest.raises(InvalidInput, match=r"plan\.clip_norm"):
        RoundPlan(clip_norm=float("inf"))


def test_the_strategy_follows_the_plan(tmp_path: Path) -> None:
    config = Federation.made(tmp_path).config
    median = config.model_copy(update={"aggregation": AggregationConfig(rule="median")})
    chosen = chosen_strategy(median, ADAPTER, NOISE)
    assert isinstance(chosen, FfaLora)
    assert isinstance(chosen.rule, Median)
    both = config.model_copy(update={"plan": PlanConfig(trained="both")})
    product = chosen_strategy(both, ADAPTER, NOISE)
    assert isinstance(product, ProductMean)
    assert product.rank == 2


def test_a_server_optimiser_s_state_is_kept() -> None:
    import numpy as np

    state = State({"x.b": np.ones((2, 3), np.float32)}, {"x.b": np.full((2, 3), 2, np.float32)})
    read = read_state(write_state(state))
    np.testing.assert_array_equal(read.first["x.b"], state.first["x.b"])
    np.testing.assert_array_equal(read.second["x.b"], state.second["x.b"])
    assert write_state(State()) == b""


def test_the_check_explains_the_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = Federation.made(tmp_path)
    path = tmp_path / "cluster.yaml"
    path.write_text(YAML.format(adapter=federation.config.adapter))
    main(["cluster", "check", str(path)])
    out = capsys.readouterr().out
    assert "asynchronous · of 4 updates, never of fewer than 3 · 6 leases at most" in out
    assert "B of the last 4 layers" in out
    assert "FFA-LoRA by mean" in out
    path.write_text(YAML.format(adapter="f" * 64))
    assert main(["cluster", "check", str(path)]) == 7
    assert "federation.adapter: the registry has no artifact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ("minimum: 5", "minimum 5 is above the goal, 4"),
        ("cohort: 2", "cohort 2 is below the goal, 4"),
        ("goals: 5", "did you mean goal"),
        ("aggregation: {rule: krum, byzantine: 1}", "krum needs a minimum of 5"),
        ("plan: {trained: both}\n  aggregation: {rule: median}", "take mean or krum"),
        ("retry_s: [5, 1]", "must be two rising numbers"),
    ],
)
def test_a_wrong_section_is_named(changed: str, problem: str) -> None:
    text = YAML.format(adapter="a" * 64)
    key = changed.partition(":")[0]
    lines = [line for line in text.splitlines() if not line.strip().startswith(f"{key}:")]
    with pytest.raises(ConfigError, match=problem):
        parse_config("\n".join([*lines, f"  {changed}"]), "cluster.yaml")


def test_rounds_need_a_registry() -> None:
    text = YAML.format(adapter="a" * 64).replace("gateway:\n  registry: registry\n", "")
    with pytest.raises(ConfigError, match=r"federation needs gateway\.registry"):
        parse_config(text, "cluster.yaml")


@pytest.mark.parametrize("store", ["", "  store: rounds.sqlite3\n"])
def test_gateways_of_several_nodes_need_postgresql(store: str) -> None:
    gateway = "gateway: {registry: r, replicas: 2, replicas_per_node: 1}\n"
    text = f"{gateway}tiers: [{{name: a, model: a/m.gguf}}]\nfederation:\n  adapter: {'a' * 64}\n"
    with pytest.raises(ConfigError, match=r"federation\.store must be postgresql://"):
        parse_config(text + store, "cluster.yaml")
    assert parse_config(f"{text}  store: postgresql://db/rounds\n", "cluster.yaml").federation


def test_an_operator_s_cluster_needs_a_signing_key() -> None:
    from cloud.deployment import DeployArgs, build

    text = YAML.format(adapter="a" * 64).replace("  signing_key: publisher.key\n", "")
    text = text.replace("registry: registry", "registry: /registry")
    with pytest.raises(ConfigError, match=r"federation\.signing_key is missing"):
        build(DeployArgs(config=text))
    with pytest.raises(ConfigError, match=r"federation\.signing_key must be an absolute path"):
        build(DeployArgs(config=YAML.format(adapter="a" * 64)))


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    text = YAML.format(adapter="a" * 64) + "  store: postgresql://me:secret@db:5432/rounds?x=y\n"
    planned = plan_cluster(parse_config(text, "cluster.yaml"), cores=2)
    assert planned.federation is not None
    assert planned.federation.store == "postgresql://db:5432/rounds"


async def test_the_command_line_shows_and_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cloud.federation.seams import NeedsApproval

    federation = Federation.made(tmp_path)
    store = ["--store", federation.config.store_url]
    assert main(["federation", "rounds", *store]) == 3
    assert "there is no store" in capsys.readouterr().err
    async with (
        federation.gateway() as port,
        federation.coordinator(gate=NeedsApproval()) as coordinator,
    ):
        await coordinator.tick()
        for value in (1.0, 2.0, 3.0):
            device = BareDevice(federation.profile(port))
            await device.enrol()
            data = payload(value)
            await device.service.upload(device.header(await device.lease(), data), data)
            await device.close()
        await coordinator.tick()
        assert main(["federation", "rounds", *store, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [each["state"] for each in told["rounds"]] == ["waiting"]
        assert told["counters"]["committed"] == 3
        assert main(["federation", "approve", "1", "--note", "looks good", *store]) == 0
        assert "note       looks good" in capsys.readouterr().out
        assert main(["federation", "reject", "1", *store]) == 2
        assert "1 is approved" in capsys.readouterr().err
        await coordinator.tick()
        assert main(["federation", "show", "2", *store]) == 0
        assert "round      2 · collecting" in capsys.readouterr().out
        assert main(["federation", "show", "9", *store]) == 3


def test_noise_is_added_only_where_it_is_known_what_a_device_can_change(tmp_path: Path) -> None:
    how = AggregationConfig(noise_multiplier=1.0)
    made = Federation.made(tmp_path / "fits", mode="synchronous", aggregation=how)
    strategy = chosen_strategy(made.config, ADAPTER, NOISE)
    assert isinstance(strategy, FfaLora)
    assert isinstance(strategy.rule, PrivateMean)
    assert (strategy.rule.clip, strategy.rule.expected) == (1000.0, 3)
    for place, given in enumerate(
        (
            {"mode": "asynchronous"},
            {"plan": PlanConfig(trained="both")},
            {"aggregation": AggregationConfig(noise_multiplier=1.0, rule="median")},
        )
    ):
        folder = tmp_path / str(place)
        with pytest.raises(ValueError, match="noise_multiplier needs"):
            Federation.made(folder, **{"mode": "synchronous", "aggregation": how, **given})


@pytest.mark.parametrize(
    ("trim", "minimum", "goal", "count"), [(0.45, 5, 5, 5), (0.1, 2, 20, 2), (0.4, 5, 8, 6)]
)
def test_a_trim_that_leaves_nothing_of_a_round_is_refused(
    tmp_path: Path, trim: float, minimum: int, goal: int, count: int
) -> None:
    how = AggregationConfig(rule="trimmed_mean", trim=trim)
    with pytest.raises(ValueError, match=rf"trim {trim} leaves nothing of {count} updates"):
        Federation.made(tmp_path / "bad", minimum=minimum, goal=goal, aggregation=how)
    Federation.made(tmp_path / "good", minimum=20, goal=30, aggregation=how)


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("sqlite:///var/lib/rounds", "begins with sqlite://; .* path of a SQLite file"),
        ("mysql://me:secret@db/rounds", "begins with mysql://; give postgresql://"),
        ("postgresql+psycopg://me:secret@db/rounds", r"begins with postgresql\+psycopg://"),
        ("~nobody-of-this-name/rounds", "is ~nobody.*no such user; write the folder out"),
    ],
)
def test_a_store_that_is_none_is_refused(tmp_path: Path, store: str, said: str) -> None:
    """A scheme that nobody knows is not the name of a folder."""
    text = YAML.format(adapter="a" * 64) + f"  store: {store}\n"
    with pytest.raises(ConfigError, match=f"federation: store {said}") as caught:
        parse_config(text, "cluster.yaml")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInput, match=rf"federation\.store: {said}"):
        Database(store)
