"""Outcome records: what each tier of a cascade made of each input of a data set.

One format, in JSONL and in Parquet; docs/records.md describes it.

Example:
    >>> from cascade.records import load, split
    >>> records = load(Path("sentiment.parquet"))
    >>> parts = split(records, {"develop": 0.3, "certify": 0.5, "test": 0.2}, seed="1")
    >>> parts["certify"].column("device", "raw_score"), parts["certify"].correct("device")
"""

from cascade.records.file import load, save
from cascade.records.outcome import COUNTS, LISTS, NUMBERS, Outcome, Scores, SignalSummary
from cascade.records.parquet import from_columns
from cascade.records.record import Header, Record, TierInfo, input_sha256, text_key
from cascade.records.record_set import Lists, RecordSet
from cascade.records.split import check_disjoint, split

__all__ = [
    "COUNTS",
    "LISTS",
    "NUMBERS",
    "Header",
    "Lists",
    "Outcome",
    "Record",
    "RecordSet",
    "Scores",
    "SignalSummary",
    "TierInfo",
    "check_disjoint",
    "from_columns",
    "input_sha256",
    "load",
    "save",
    "split",
    "text_key",
]
