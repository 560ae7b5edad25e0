"""Files of records: what is written reads back the same, and anything else is refused by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from cascade.errors import InvalidInput, NotFound
from cascade.records import (
    Header,
    Outcome,
    Record,
    RecordSet,
    Scores,
    SignalSummary,
    TierInfo,
    from_columns,
    input_sha256,
    load,
    save,
    text_key,
)
from cascade.signals import Signals
from tests.cascade.records import drawn

FORMATS = (".jsonl", ".parquet")


def small() -> RecordSet:
    """Three records: both tiers right, one failed, one not asked."""
    outcomes = (
        {
            "device": Outcome(answer="yes", correct=1, raw_score=0.9, latency_s=0.25),
            "tier1": Outcome(answer="no", correct=0, prompt_tokens=7, cost_usd=0.5),
        },
        {
            "device": Outcome(answer="no", correct=0.5, raw_score=0.4),
            "tier1": Outcome(status="UNAVAILABLE"),
        },
        {"device": Outcome(answer="no")},
    )
    return RecordSet.of(
        drawn.header(),
        [
            Record(
                id=name,
                document=f"d{name}",
                input_sha256=input_sha256(name),
                groups={"domain": "shop"} if name != "c" else {},
                features={"length": 3.0} if name != "b" else {},
                outcomes=outcome,
            )
            for name, outcome in zip("abc", outcomes, strict=True)
        ],
    )


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    save(tmp_path / "good.jsonl", small())
    return (tmp_path / "good.jsonl").read_text().splitlines()


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=60)
@given(records=drawn.records)
def test_every_record_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, records: list[Record]
) -> None:
    path = tmp_path_factory.mktemp("trip") / f"file{suffix}"
    written = RecordSet.of(drawn.header(), records)
    save(path, written)
    read = load(path)
    assert read == written
    for tier in written.tiers:
        for name in ("raw_score", "correct", "prompt_tokens", "min_margin", "option_unexplored"):
            np.testing.assert_array_equal(read.column(tier, name), written.column(tier, name))
        np.testing.assert_array_equal(read.answered(tier), written.answered(tier))
        assert read.texts(tier, "status") == written.texts(tier, "status")
        for name in ("token_logprobs", "option_probabilities"):
            one, two = read.lists(tier, name), written.lists(tier, name)
            np.testing.assert_array_equal(one.values, two.values)
            np.testing.assert_array_equal(one.offsets, two.offsets)


@settings(max_examples=30)
@given(records=drawn.records)
def test_one_format_becomes_the_other_and_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("convert")
    written = RecordSet.of(drawn.header(), records)
    save(folder / "a.jsonl", written)
    save(folder / "b.parquet", load(folder / "a.jsonl"))
    save(folder / "c.jsonl", load(folder / "b.parquet"))
    assert load(folder / "c.jsonl") == written


@pytest.fixture(params=["memory", *FORMATS])
def some(request: pytest.FixtureRequest, tmp_path: Path) -> RecordSet:
    """The small set, in memory and out of each kind of file."""
    if request.param == "memory":
        return small()
    save(tmp_path / f"some{request.param}", small())
    return load(tmp_path / f"some{request.param}")


def test_columns_are_numbers_with_nan_where_there_is_none(some: RecordSet) -> None:
    np.testing.assert_array_equal(some.column("device", "raw_score"), [0.9, 0.4, np.nan])
    np.testing.assert_array_equal(some.correct("device"), [1, 0.5, np.nan])
    np.testing.assert_array_equal(some.column("tier1", "prompt_tokens"), [7, np.nan, np.nan])
    assert some.column("tier1", "bytes_up").dtype == np.float64
    np.testing.assert_array_equal(some.answered("tier1"), [True, False, False])
    np.testing.assert_array_equal(some.feature("length"), [3, np.nan, 3])
    assert some.group("domain") == ["shop", "shop", ""]
    assert some.texts("tier1", "status") == ["OK", "UNAVAILABLE", ""]
    assert some.ids == ["a", "b", "c"]
    assert some.documents == ["da", "db", "dc"]


def test_a_choice_of_records_is_a_set_of_its_own(some: RecordSet, tmp_path: Path) -> None:
    chosen = some.take([2, 0])
    assert chosen.ids == ["c", "a"]
    np.testing.assert_array_equal(chosen.correct("device"), [np.nan, 1])
    assert chosen[1] == some[0]
    again = chosen.take(np.array([False, True]))
    assert [record.id for record in again] == ["a"]
    for suffix in FORMATS:
        save(tmp_path / f"part{suffix}", chosen)
        assert load(tmp_path / f"part{suffix}") == chosen


@pytest.mark.parametrize("which", [[3], [-1], [True], [[0]], [0.5]])
def test_records_that_are_not_there_cannot_be_taken(some: RecordSet, which: list[object]) -> None:
    with pytest.raises(InvalidInput, match=r"^which"):
        some.take(which)


def test_lists_are_those_of_the_records(tmp_path: Path) -> None:
    sizes = (2, 0, 3, 1)
    records = []
    for i, size in enumerate(sizes):
        values = np.arange(size, dtype=np.float32) / 8
        signals = Signals(-values - i, values, values) if size else None
        outcomes = {"device": Outcome(signals=signals)}
        records.append(Record(f"r{i}", "d", input_sha256(str(i)), outcomes))
    written = RecordSet.of(drawn.header(), records)
    for suffix in FORMATS:
        save(tmp_path / f"lists{suffix}", written)
        for some in (written, load(tmp_path / f"lists{suffix}")):
            lists = some.lists("device", "token_logprobs")
            assert len(lists) == 4
            assert [len(numbers) for numbers in lists] == list(sizes)
            np.testing.assert_array_equal(lists[-2], [-2, -2.125, -2.25])
            turned = some.take([2, 1, 0]).lists("device", "token_logprobs")
            np.testing.assert_array_equal(turned.values, [-2, -2.125, -2.25, 0, -0.125])
            np.testing.assert_array_equal(turned.offsets, [0, 3, 3, 5])
            assert len(some.lists("tier1", "token_logprobs").values) == 0
    with pytest.raises(NotFound, match="no field 'logprobs'; there are token_logprobs"):
        written.lists("device", "logprobs")


def test_unknown_names_are_refused_with_the_known_ones(some: RecordSet) -> None:
    with pytest.raises(NotFound, match="there are device, tier1"):
        some.column("tier9", "raw_score")
    with pytest.raises(NotFound, match="raw_score"):
        some.column("device", "score")
    with pytest.raises(NotFound, match="there are length"):
        some.feature("width")
    with pytest.raises(NotFound, match="there are domain"):
        some.group("colour")
    with pytest.raises(IndexError):
        some[3]


def edited(line: str, **changes: object) -> str:
    """A line with fields changed, or removed where they are ``...``; ``__`` goes inside."""
    content = json.loads(line)
    for path, value in changes.items():
        *inside, name = path.split("__")
        place = content
        for step in inside:
            place = place[step]
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ...}, "line 3: record.id: is missing"),
        ({"id": ""}, "line 3: record.id: is empty"),
        ({"id": "a"}, "line 3: record.id: 'a' is also that of line 2"),
        ({"id": 5}, "line 3: record.id: must be a string"),
        ({"colour": 1}, "line 3: record.colour: is not a known field"),
        ({"input_sha256": "0F"}, "line 3: record.input_sha256: must be a lower-case hex sha256"),
        ({"groups": ["a"]}, "line 3: record.groups: must be a JSON object"),
        ({"groups": {"domain": 1}}, "line 3: record.groups.domain: must be a string"),
        ({"features": {"n": "1"}}, "line 3: record.features.n: must be a finite number"),
        ({"features": {"": 1}}, "line 3: record.features: has an empty name"),
        ({"options": ["one"]}, "line 3: record.options: needs at least two"),
        ({"outcomes": []}, "line 3: record.outcomes: must be a JSON object"),
        ({"outcomes__tier2": {"status": "OK"}}, "record.outcomes.tier2: is no tier of the header"),
        ({"outcomes__device__status": ...}, "outcomes.device.status: is missing"),
        ({"outcomes__device__status": "fine"}, "outcomes.device.status: must be OK or the name"),
        ({"outcomes__device__raw_score": 1.5}, "outcomes.device.raw_score: 1.5 is not in 0 … 1"),
        ({"outcomes__device__raw_score": math.nan}, "outcomes.device.raw_score: must be a finite"),
        ({"outcomes__device__correct": 2}, "outcomes.device.correct: must be true, false, or"),
        ({"outcomes__device__correct": math.nan}, "outcomes.device.correct: must be true"),
        ({"outcomes__device__latency_s": -1}, "outcomes.device.latency_s: -1 is not in 0 … inf"),
        ({"outcomes__device__bytes_up": 1.5}, "outcomes.device.bytes_up: must be a whole number"),
        ({"outcomes__device__mean_logprob": 1}, "outcomes.device.mean_logprob: 1 is not in -inf"),
        ({"outcomes__device__finish": "end"}, "outcomes.device.finish: 'end' is not known"),
        ({"outcomes__device__token_margins": [0]}, "token_logprobs: is missing, but token_margins"),
        ({"outcomes__tier1__correct": 0}, "tier1.correct: must be absent where status is UNAV"),
        ({"outcomes__tier1__answer": "x"}, "tier1.answer: must be absent where status is UNAV"),
    ],
)
def test_a_bad_field_is_named_with_its_line(
    tmp_path: Path, lines: list[str], changes: dict[str, object], message: str
) -> None:
    lines[2] = edited(lines[2], **changes)
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidInput) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad.jsonl line 3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "line 1: header.format: is not 'cascade-records'"),
        ({"format": ...}, "line 1: header.format: is not 'cascade-records'"),
        ({"version": 2}, "line 1: header.version: 2 is newer than 1; update this program"),
        ({"version": "1"}, "line 1: header.version: must be a whole number"),
        ({"created": "today"}, "line 1: header.created: 'today' is no UTC time"),
        ({"tiers": []}, "line 1: header.tiers: must be a list of at least one tier"),
        ({"colour": 1}, "line 1: header.colour: is not a known field"),
        ({"options": ["yes"]}, "line 1: header.options: needs at least two"),
        ({"options": ["yes", "nope"]}, "line 1: header.wording: has other options"),
    ],
)
def test_a_bad_header_is_named(
    tmp_path: Path, lines: list[str], changes: dict[str, object], message: str
) -> None:
    lines[0] = edited(lines[0], **changes)
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidInput) as caught:
        load(path)
    assert message in str(caught.value)


def test_tiers_have_distinct_plain_names(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    for name, message in (
        ("device", r"tiers: names device twice"),
        ("a.b", r"tiers\[1\]\.name: 'a\.b' is not 1 to 32 characters"),
    ):
        content = json.loads(lines[0])
        content["tiers"][1]["name"] = name
        path.write_text("\n".join([json.dumps(content), *lines[1:]]))
        with pytest.raises(InvalidInput, match=message):
            load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"{}", "header.format"),
        (b"\xff", "line 1: is no JSON object in UTF-8"),
        (b'{"format": "cascade-records", "format": "x"}', "has the field format twice"),
    ],
)
def test_what_is_no_file_of_records_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        load(path)
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="is no Parquet file"):
        load(path)


def test_a_file_without_records_is_refused(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "none.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(InvalidInput, match="holds no records"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="there are none"):
        RecordSet.of(drawn.header(), [])


def test_a_torn_line_is_refused(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "torn.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    with pytest.raises(InvalidInput, match="line 3: is no JSON object"):
        load(tmp_path / "torn.jsonl")


def test_files_are_known_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"does not end with \.jsonl or \.parquet"):
        load(tmp_path / "records.csv")
    for suffix in FORMATS:
        with pytest.raises(NotFound, match="there is no file"):
            load(tmp_path / f"nope{suffix}")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "tier.device.raw_score",
            [0.5, 1.5, 0.1],
            r"record 2: column tier\.device\.raw_score: 1\.5",
        ),
        ("tier.device.raw_score", [0.5, math.nan, 0.1], "record 2: .* is not a finite number"),
        ("tier.device.bytes_up", [1, -1, None], "record 2: column tier.device.bytes_up: -1"),
        ("tier.device.raw_score", ["a", "b", "c"], "has the type string, not double"),
        ("tier.device.colour", [1, 2, 3], r"column tier\.device\.colour: is not a known column"),
        ("tier.tier9.raw_score", [0, 0, 0], r"column tier\.tier9\.raw_score: is not a known"),
        ("colour", ["a", "b", "c"], "column colour: is not a known column"),
        ("id", ["a", "b", "a"], r"record 3\.id: 'a' is also that of record 1"),
        ("id", ["a", None, "c"], "record 2: column id: is empty"),
        ("document", ["a", "b", ""], "record 3: column document: is empty"),
        ("input_sha256", ["0" * 64, "0" * 63, None], "record 2: column input_sha256: must be"),
        ("input_sha256", ["0" * 64, "0" * 63 + "G", "0"], "record 2: column input_sha256: must be"),
        ("input_sha256", ["0" * 64, "0" * 62 + "é", "0"], "record 2: column input_sha256: must be"),
        ("tier.device.status", ["OK", "ok", "OK"], "record 2: column tier.device.status: must be"),
        ("tier.device.status", ["OK", None, "OK"], r"record 2: .*status: is null, tier\.device\."),
        ("tier.tier1.correct", [1.0, 0.0, None], "record 2: .*correct: must be null where the ti"),
        ("tier.tier1.answer", ["a", "b", None], "record 2: .*answer: must be null where the tier"),
        ("tier.device.token_margins", [[0.5]] * 3, "token_logprobs: is missing"),
    ],
)
def test_a_bad_column_is_named(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    path = tmp_path / "bad.parquet"
    save(path, small())
    table = pq.read_table(path)
    kind = pa.list_(pa.float32()) if isinstance(values[0], list) else None
    added = pa.array(values, kind)
    table = (
        table.set_column(table.schema.get_field_index(column), column, added)
        if column in table.schema.names
        else table.append_column(column, added)
    )
    pq.write_table(table, path)
    with pytest.raises(InvalidInput, match=message):
        load(path)


def test_a_parquet_file_without_a_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(InvalidInput, match="has no header of them"):
        load(path)


def test_lists_in_parquet_are_checked_when_a_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    signals = Signals(*(np.zeros(2, np.float32) for _ in range(3)))
    one = small()[0]
    outcome = replace(one.outcomes["device"], signals=signals)
    save(path, RecordSet.of(drawn.header(), [replace(one, outcomes={"device": outcome})]))
    table = pq.read_table(path)
    place = table.schema.get_field_index("tier.device.token_margins")
    bad = pa.array([[0.5]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(place, "tier.device.token_margins", bad), path)
    read = load(path)
    np.testing.assert_array_equal(read.correct("device"), [1])
    with pytest.raises(InvalidInput, match=r"record 1.*token_margins: has 1 numbers but"):
        read[0]
    worse = pa.array([[0.5, 1.5]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(place, "tier.device.token_margins", worse), path)
    with pytest.raises(InvalidInput, match=r"record 1: column tier\.device\.token_margins: 1\.5"):
        load(path).lists("device", "token_margins")


def test_columns_become_a_set_without_objects(tmp_path: Path) -> None:
    header = Header(tiers=(TierInfo("device", "simulated", "device"),))
    scores = np.array([0.25, np.nan, 1.0])
    made = from_columns(
        header,
        {
            "id": ["a", "b", "c"],
            "input_sha256": [input_sha256(name) for name in "abc"],
            "tier.device.raw_score": scores,
            "tier.device.prompt_tokens": np.array([1, 2, 3]),
        },
    )
    save(tmp_path / "made.parquet", made)
    read = load(tmp_path / "made.parquet")
    np.testing.assert_array_equal(read.column("device", "raw_score"), scores)
    assert read[1].outcomes["device"] == Outcome(prompt_tokens=2)
    assert read.documents == ["a", "b", "c"]
    with pytest.raises(InvalidInput, match=r"column tier.cloud.raw_score"):
        from_columns(header, {"id": ["a"], "tier.cloud.raw_score": scores[:1]})
    with pytest.raises(InvalidInput, match=r"^columns"):
        from_columns(header, {"id": ["a", "b"], "input_sha256": ["0" * 64]})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_documents_are_numbered_as_they_occur(tmp_path: Path, ending: str) -> None:
    whole = RecordSet.of(
        drawn.header(),
        [
            Record(f"r{i}", document, input_sha256(str(i)), {})
            for i, document in enumerate(["b", "a", "b", "c", "a", "c"])
        ],
    )
    save(tmp_path / f"a.{ending}", whole)
    read = load(tmp_path / f"a.{ending}")
    assert read.document_numbers().tolist() == [0, 1, 0, 2, 1, 2]
    assert read.take([5, 4, 3, 1]).document_numbers().tolist() == [0, 1, 0, 1]
    assert read.take([]).document_numbers().tolist() == []


def test_columns_cannot_be_written_into(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", small())
    with pytest.raises(ValueError, match="read-only"):
        load(tmp_path / "a.parquet").correct("device")[0] = 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcomes": {"tier9": Outcome()}}, "record 1.outcomes.tier9: is no tier"),
        ({"outcomes": {"device": Outcome(raw_score=2.0)}}, "record 1.outcomes.device.raw_score"),
        ({"features": {"x": math.inf}}, "record 1.features.x"),
        ({"id": ""}, "record 1.id: is empty"),
    ],
)
def test_no_set_holds_what_could_not_be_read_back(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        RecordSet.of(drawn.header(), [replace(small()[0], **change)])  # type: ignore[arg-type]


def test_scores_have_one_number_for_each_option() -> None:
    three = Scores(*(np.zeros(3, np.float32) for _ in range(3)))
    good = replace(small()[0], outcomes={"device": Outcome(scores=three)})
    RecordSet.of(drawn.header(), [good])
    with pytest.raises(InvalidInput, match="option_logprobs: has 3 numbers for 2 options"):
        RecordSet.of(drawn.header(), [replace(good, options=("a", "b"))])


def test_a_summary_says_what_the_signals_are() -> None:
    signals = Signals(
        np.array([-1.0, -2.0, -3.0, -6.0], np.float32),
        np.array([0.5, 2.0, 1.0, 0.5], np.float32),
        np.array([0.25, 0.5, 0.75, 0.5], np.float32),
    )
    assert SignalSummary.of(signals) == SignalSummary(
        mean_logprob=-3.0,
        min_logprob=-6.0,
        q25_logprob=-3.75,
        first_logprob=-1.0,
        mean_entropy=1.0,
        max_entropy=2.0,
        first_entropy=0.5,
        mean_margin=0.5,
        min_margin=0.25,
        first_margin=0.25,
    )
    assert SignalSummary.of(Signals(*(np.zeros(0, np.float32) for _ in range(3)))) is None


def test_inputs_are_the_same_by_their_words() -> None:
    assert input_sha256("Great product!") == input_sha256("great   PRODUCT")
    assert input_sha256("not good") != input_sha256("good")
    assert text_key("Café ﬁne") == text_key("café fine")
    assert text_key(":)") != text_key(":(")


def test_jsonl_needs_neither_pyarrow_nor_scipy(tmp_path: Path, lines: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('pyarrow', 'scipy', 'sklearn'): sys.modules[name] = None\n"
        "from cascade.records import load, save\n"
        f"records = load(Path({str(tmp_path / 'good.jsonl')!r}))\n"
        "print(records.correct('device')[0])\n"
        "try: save(Path('x.parquet'), records)\n"
        "except Exception as problem: print(type(problem).__name__, problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "1.0",
        "CascadeError Parquet files need pyarrow: pip install 'edge-cloud-cascade[tune]'",
    ]
