"""The page in a browser: it draws, its controls move what they should, its numbers are Python's."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from cascade import metrics
from cascade.binomial import upper_bound
from cascade.pair import pair
from cascade.records import from_columns
from cascade.report import evaluate, report
from cascade.report.figures import at
from cascade.report.front import kept_counts
from cascade.report.pricing import pricing
from cascade.task import free
from cascade.tune import Aim, Modelling, tune
from tests.browser import browser
from tests.cascade.report.simulated import HOSTILE, columns, header, hostile, moods, policy_of
from tests.cascade.talk_records import talk

pytestmark = pytest.mark.processes

VALUES = """Object.fromEntries([...document.querySelectorAll("[data-value]")].map(
    place => [place.id, Number(place.dataset.value)]))"""


@pytest.fixture(scope="module")
def policy():
    return policy_of(moods(3000, 7))


@pytest.fixture(scope="module")
def page():
    with browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def without_complaints(page):
    """Whatever a test does: nothing thrown, nothing blocked, nothing fetched."""
    page.problems.clear()
    yield
    assert page.problems == []


@pytest.fixture
def show(page, tmp_path):
    """Opens a report; further words are the page's."""

    def opened(made, **how):
        path = tmp_path / "report.html"
        path.write_text(made.html(), "utf-8")
        page.open(path, **how)
        page.settled()

    return opened


def move(page, control, value):
    """Set a control as a user's input would."""
    page.run(
        f"(() => {{ const control = document.getElementById({control!r});"
        f"control.value = {json.dumps(value)};"
        "for (const kind of ['input', 'change'])"
        "  control.dispatchEvent(new Event(kind, { bubbles: true })); })()"
    )


def check(page, made, point, *, price=1.0, weight_usd_s=0.0):
    """The page's numbers beside those of Python."""
    shown = page.run(VALUES)
    assert shown["kept"] == point.kept.value
    assert shown["accuracy"] == pytest.approx(point.accuracy.value, abs=1e-12)
    assert shown["p95"] == pytest.approx(point.p95_latency_s, rel=1e-6)
    cost = price * point.cost_usd + weight_usd_s * point.mean_latency_s
    assert shown["cost"] == pytest.approx(1000 * cost, rel=1e-6)
    if point.risk is not None:
        assert shown["risk"] == pytest.approx(point.risk.value, abs=1e-12)
    bound = float(page.run("document.getElementById('risk').dataset.bound"))
    assert bound == pytest.approx(point.risk_bound, abs=1e-9)


def test_the_page_opens_at_the_policy_with_pythons_numbers(page, show, policy):
    made = report(moods(), policy)
    show(made)
    check(page, made, made.figures.point)
    shown = page.run(VALUES)
    for name in ("both", "only_device", "only_strong", "neither"):
        assert shown[f"who-{name}"] == getattr(made.figures.confusion, name)
    assert page.run("document.querySelectorAll('figure:not([hidden]) > svg').length") == 5
    assert "This is the certified threshold" in page.run("document.body.innerText")
    text = page.run("document.body.innerText")
    assert not any(word in text for word in ("NaN", "undefined", "Infinity", "null"))
    drawn = page.run("document.getElementById('charts').innerHTML")
    assert "NaN" not in drawn
    assert "Infinity" not in drawn


@pytest.mark.parametrize("escalated", [0, 1, 333, 777, 1000])
def test_the_threshold_slider_recomputes(page, show, policy, escalated):
    made = report(moods(), policy)
    show(made)
    move(page, "escalated", escalated)
    score = np.sort(made.rows.score)[::-1]
    wanted = int(np.ceil(len(score) * (1000 - escalated) / 1000))
    threshold = score[wanted - 1] if wanted else None
    check(page, made, at(made.rows, pricing(made.rows), threshold, made.figures.delta))
    assert "You are looking around" in page.run("document.body.innerText")


def test_keys_move_the_slider(page, show, policy):
    made = report(moods(), policy)
    show(made)
    before = page.run(VALUES)["kept"]
    page.run("document.getElementById('escalated').focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight")
    after = page.run(VALUES)["kept"]
    assert after < before
    page.press("End")
    assert page.run(VALUES)["kept"] == 0
    assert "nothing is kept" in page.run("document.getElementById('risk').innerText")
    assert "keeps nothing" in page.run(
        "document.getElementById('escalated').getAttribute('aria-valuetext')"
    )


def test_a_threshold_can_be_typed(page, show, policy):
    made = report(moods(), policy)
    show(made)
    move(page, "threshold", "0.7")
    check(page, made, at(made.rows, pricing(made.rows), 0.7, made.figures.delta))


def test_price_and_waiting_recompute_the_cost(page, show, policy):
    made = report(moods(), policy)
    show(made)
    move(page, "price", 20)
    check(page, made, made.figures.point, price=10)
    before = page.run("document.querySelector('#front-cost polyline.curve').getAttribute('points')")
    move(page, "weight", 60)
    check(page, made, made.figures.point, price=10, weight_usd_s=100 / 3600)
    after = page.run("document.querySelector('#front-cost polyline.curve').getAttribute('points')")
    assert before != after
    page.run("document.getElementById('reset').click()")
    check(page, made, made.figures.point)


def test_a_group_has_its_own_numbers_and_no_certificate(page, show, policy):
    made = report(moods(), policy)
    show(made)
    labels = page.run("[...document.getElementById('group').options].map(each => each.text)")
    assert labels[0] == "all 600 rows"
    for place, group in enumerate(made.figures.groups):
        assert labels[1 + place] == f"{group.value} · {group.n} rows"
        move(page, "group", f"0:{place}")
        check(page, made, group.point)
        assert page.run(VALUES)["who-both"] == group.confusion.both
    assert "You are looking around" in page.run("document.body.innerText")


def test_the_curves_are_those_of_the_metrics(page, show, policy):
    """Readings of the charts, point by point; scores with ties among them."""
    made = report(moods(), policy)
    show(made)
    rows = made.rows
    curve = metrics.deferral_curve(rows.score, rows.device.right, rows.strong.right)
    counts = kept_counts(np.sort(rows.score)[::-1])[::-1]  # the chart goes from all kept to none
    assert len(counts) > 50
    page.run("document.querySelector('#deferral > svg').focus()")
    page.press("Home")
    for kept in counts:
        escalated = len(rows) - int(kept)
        read = page.run("document.querySelector('#deferral .readout').textContent")
        shown = [float(number) for number in re.findall(r"(-?[\d.]+) %", read)]
        lines = (curve.share, curve.accuracy, curve.random, curve.oracle)
        expected = [100 * line[escalated] for line in lines]
        assert shown == pytest.approx(expected, abs=0.0501), read
        page.press("ArrowRight")
    errors = page.run("document.querySelector('#reliability .readout').textContent")
    assert f"{metrics.ece(rows.score, rows.device.right):.3f}" in errors


def test_a_chart_is_read_and_picked_by_keys_and_pointer(page, show, policy):
    made = report(moods(), policy)
    show(made)
    page.run("document.querySelector('#coverage > svg').focus()")
    page.press("Home", "ArrowRight", "ArrowRight")
    read = page.run("document.querySelector('#coverage .readout').textContent")
    assert "kept (confidence ≥" in read
    page.press("Enter")
    kept = page.run(VALUES)["kept"]
    assert read.startswith(f"{100 * kept:.1f} % kept")
    page.run("document.querySelector('#coverage > svg').scrollIntoView({block: 'end'})")
    box = page.run(
        "(box => [box.left, box.top, box.width, box.height])"
        "(document.querySelector('#coverage > svg').getBoundingClientRect())"
    )
    page.move(box[0] + box[2] * 0.8, box[1] + box[3] / 2)
    over = page.run("document.querySelector('#coverage .readout').textContent")
    assert over != read
    page.click(box[0] + box[2] * 0.8, box[1] + box[3] / 2)
    assert over.startswith(f"{100 * page.run(VALUES)['kept']:.1f} % kept")


@pytest.mark.parametrize("width", [320, 390, 820, 1400])
def test_nothing_sticks_out_at_any_width(page, show, policy, width):
    show(report(moods(), policy), width=width, height=700)
    assert page.run("document.documentElement.scrollWidth") <= width
    sizes = page.run(
        "[...document.querySelectorAll('figure > svg')].map(svg =>"
        " svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"
    )
    assert min(sizes) > 0.9  # letters as large as elsewhere


def test_dark_and_light_have_readable_colours(page, show, policy):
    """WCAG 2.2, 1.4.3 and 1.4.11: text 4.5 to 1, lines 3 to 1."""
    contrast = """(() => {
      const style = getComputedStyle(document.documentElement);
      const light = name => style.getPropertyValue(name).trim().slice(1, 7).match(/../g)
        .map(part => parseInt(part, 16) / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
      const against = (one, two) => (Math.max(light(one), light(two)) + 0.05)
        / (Math.min(light(one), light(two)) + 0.05);
      return Object.fromEntries(["--ink", "--muted", "--curve", "--oracle", "--point"].map(
        name => [name, Math.min(against(name, "--page"), against(name, "--panel"))]));
    })()"""
    backgrounds = set()
    for dark in (False, True):
        show(report(moods(), policy), dark=dark)
        found = page.run(contrast)
        assert min(found["--ink"], found["--muted"]) >= 4.5
        assert min(found.values()) >= 3
        backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_data_cannot_command_the_page(page, show, policy):
    made = report(hostile(moods(60)), policy)
    show(made)
    assert page.run("document.title") == "mood: device and tier1"
    assert HOSTILE in page.run("document.getElementById('group').textContent")
    assert page.run("document.querySelectorAll('b').length") == 0


def test_a_sample_is_drawn_like_the_whole(page, show):
    """More rows than are embedded: the page computes on the sample, near the exact figures."""
    made = report(moods(30_000))
    show(made)
    threshold = float(np.median(made.rows.score))
    move(page, "threshold", str(threshold))
    exact = at(made.rows, pricing(made.rows), threshold, made.figures.delta)
    shown = page.run(VALUES)
    assert shown["kept"] == pytest.approx(exact.kept.value, abs=0.02)
    assert shown["accuracy"] == pytest.approx(exact.accuracy.value, abs=0.02)


def test_one_tier_alone_and_no_policy(page, show):
    alone = {name: value for name, value in columns(300).items() if "tier1" not in name}
    show(report(from_columns(header("device"), alone)))
    visible = page.run(
        "[...document.querySelectorAll('figure')].filter(each => !each.hidden).map(each => each.id)"
    )
    assert visible == ["coverage", "reliability"]
    text = page.run("document.body.innerText")
    assert "no confidence" in text
    assert "raw score ≥" in text


def test_an_infeasible_policy_opens_with_everything_escalated(page, show):
    policy = policy_of(moods(300, 7), alpha=0.01)
    made = report(moods(), policy)
    show(made)
    check(page, made, made.figures.point)
    assert "no threshold could be certified" in page.run("document.body.innerText")


def test_tiers_without_latencies_have_no_chart_of_them(page, show, policy):
    records = moods(tier__tier1__latency_s=None, tier__tier1__cost_usd=None)
    show(report(records, policy))
    assert page.run("document.getElementById('front-latency').hidden")
    assert "(assumed)" in page.run("document.body.innerText")


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_the_bound_in_the_page_is_exact(page, show, policy, delta):
    """Rows made so that the page's bound, where all are kept, is that of ``wrong`` among ``n``."""
    (promise,) = policy.certificate.promises
    stated = replace(promise, p_value=delta / 2)
    certificate = replace(policy.certificate, delta=delta, promises=(stated,))
    for wrong, n in ((0, 1), (0, 300), (3, 40), (150, 1000), (1999, 2000)):
        right = np.ones(n)
        right[:wrong] = 0
        records = moods(n, tier__device__correct=right)
        show(report(records, replace(policy, certificate=certificate)))
        move(page, "threshold", "0")
        shown = float(page.run("document.getElementById('risk').dataset.bound"))
        assert shown == pytest.approx(upper_bound(wrong, n, delta), abs=1e-9)


def test_it_is_printed_light_and_without_its_controls(page, show, policy):
    show(report(moods(), policy))
    assert page.pdf().startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.call("Emulation.setEmulatedMedia", media="")


def test_evaluated_rows_reach_the_page_exactly(page, show, policy):
    """Every threshold between two neighbouring scores keeps as many rows as on a device."""
    made = report(moods(200), policy)
    show(made)
    rows = evaluate(moods(200), policy)
    for threshold in np.unique(rows.score)[::7]:
        move(page, "threshold", repr(float(threshold)))
        assert page.run(VALUES)["kept"] == np.mean(rows.score >= threshold)


def test_a_policy_with_a_gain_shows_its_order_and_what_stays_unverified(show, page):
    rows = pair(talk(1500, empty=60))
    aims = [Aim("selective_risk", 0.2)]
    how = Modelling("features", ("mean_logprob", "log_tokens"), gain=True, min_gain=0.2)
    policy = tune(rows, pair(talk(1500, seed=2)), aims, delta=0.1, task=free("talk"), modelling=how)
    made = report(talk(1200, seed=3, empty=60), policy.policy)
    show(made)
    point = made.figures.point
    assert point.unverified.count > 10
    check(page, made, point)
    assert f"{100 * point.unverified.value:.1f} % more stay" in page.run(
        "document.getElementById('kept').textContent"
    )
    assert "largest expected gain first" in page.run(
        "document.querySelector('#deferral .legend').textContent"
    )
    assert page.run("document.querySelectorAll('#deferral polyline.gain').length") == 1
    facts = page.run("document.querySelector('.facts').textContent")
    assert "a logistic regression of mean_logprob, log_tokens, calibrated (Platt)" in facts
    assert {"unmeasured", "little_gain"} <= {notice.key for notice in made.notices}
    # The page's calibration error is Python's: rows without a confidence are in neither.
    error = next(each.value for each in made.figures.estimates if each.key == "ece")
    assert f"{error:.3f}" in page.run("document.querySelector('#reliability').textContent")
