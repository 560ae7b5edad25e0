"""The device's state as a kernel's files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.conditions import Conditions, FixedConditions, LinuxConditions


def system(root: Path, **files: str) -> Path:
    for place, text in files.items():
        path = root.joinpath(*place.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "share", "charging"),
    [
        ({}, None, None),
        (
            {"BAT0__type": "Battery", "BAT0__capacity": "42", "BAT0__status": "Discharging"},
            0.42,
            False,
        ),
        ({"BAT0__type": "Battery", "BAT0__capacity": "42", "BAT0__status": "Charging"}, 0.42, True),
        (
            {
                "BAT0__type": "Battery", "BAT0__capacity": "99", "BAT0__status": "Not charging",
                "AC__type": "Mains", "AC__online": "1",
            },
            0.99,
            True,
        ),
        (
            {
                "BAT0__type": "Battery", "BAT0__capacity": "80", "BAT0__status": "Discharging",
                "mouse__type": "Battery", "mouse__capacity": "3", "mouse__scope": "Device",
            },
            0.8,
            False,
        ),
        ({"BAT0__type": "Battery", "BAT0__capacity": "?"}, None, False),
    ],
)  # fmt: skip
def test_the_battery_is_that_of_this_machine(tmp_path, files, share, charging):
    root = system(tmp_path, **{f"power_supply__{place}": text for place, text in files.items()})
    assert LinuxConditions(root).read() == Conditions("unknown", share, charging)


def test_offline_takes_a_failed_call_and_no_interface_and_is_forgotten(tmp_path):
    now = [0.0]
    root = system(tmp_path, net__lo__operstate="unknown", net__wlan0__operstate="down")
    conditions = LinuxConditions(root, now=lambda: now[0])
    assert conditions.read().connectivity == "unknown"
    conditions.note_call(False)
    assert conditions.read().connectivity == "offline"
    now[0] = conditions.forget_s
    assert conditions.read().connectivity == "unknown"
    conditions.note_call(False)
    system(tmp_path, net__wlan0__operstate="up")
    assert conditions.read().connectivity == "unknown"
    system(tmp_path, net__wlan0__operstate="down")
    conditions.note_call(True)
    assert conditions.read().connectivity == "unknown"


def test_a_machine_that_has_only_its_loopback_is_not_judged(tmp_path):
    conditions = LinuxConditions(system(tmp_path, net__lo__operstate="unknown"))
    conditions.note_call(False)
    assert conditions.read().connectivity == "unknown"


def test_an_app_says_what_it_knows():
    conditions = FixedConditions()
    assert conditions.read() == Conditions()
    conditions.set(Conditions("metered", 0.2, False))
    conditions.note_call(False)
    assert conditions.read().connectivity == "metered"


def test_the_hottest_zone_is_told_where_it_is_asked_for(tmp_path):
    root = system(
        tmp_path,
        thermal__thermal_zone0__temp="31500",
        thermal__thermal_zone1__temp="48000",
        thermal__thermal_zone2__temp="broken",
        thermal__cooling_device0__type="Fan",
    )
    assert LinuxConditions(root, temperature=True).read().temperature_c == 48.0
    assert LinuxConditions(root).read().temperature_c is None
    assert LinuxConditions(tmp_path / "none", temperature=True).read().temperature_c is None
