"""What is learned from, how much it weighs, and why the rest is left out."""

from __future__ import annotations

import random

import pytest

from cascade.errors import InvalidInput
from cascade.request import DataClass
from edge.examples import Consent, CurationRules, Source, Weighted, curate
from edge.examples.curate import REASONS, _balanced
from edge.examples.stats import summarise

TERMS = Consent()


def why(curated) -> dict[str, str]:
    return {each.example.request_id: each.reason for each in curated.left_out}


def kept(curated) -> set[str]:
    return {each.example.request_id for each in (*curated.learn, *curated.held_out)}


def test_each_is_used_or_left_out_with_a_reason(make):
    examples = [
        make("secret", request_id="class", data_class=DataClass.NEVER_LEAVE),
        make("note", request_id="task", task_id="diary"),
        make("wait", request_id="waiting", source=Source.DEVICE),
        make("wrong", request_id="rejected", rejected=True),
        make("nothing", " ", request_id="empty", options=()),
        make("fine", request_id="fine"),
    ]
    curated = curate(examples, Consent.to(never_train_tasks=["diary"]))
    assert why(curated) == {
        "class": "data_class",
        "task": "task",
        "waiting": "waiting",
        "rejected": "rejected",
        "empty": "empty",
    }
    assert kept(curated) == {"fine"}
    assert set(curated.reasons()) <= set(REASONS)
    nobody = curate(examples, None)
    assert (kept(nobody), set(why(nobody).values())) == (set(), {"no_consent"})


def test_of_one_prompt_the_best_source_stays_and_then_the_newest(make):
    examples = [
        make("A day", "bad", request_id="cloud 1"),
        make("a  DAY", "good", request_id="cloud 2"),
        make("A day", "bad", request_id="mended", source=Source.CORRECTION),
        make("A day", "good", request_id="confirmed", source=Source.CONFIRMATION),
        make("A day", "bad", request_id="mended later", source=Source.CORRECTION),
    ]
    curated = curate(examples, TERMS)
    assert kept(curated) == {"mended later"}
    assert why(curated) == {
        "cloud 1": "duplicate",
        "cloud 2": "conflict",
        "mended": "duplicate",
        "confirmed": "conflict",
    }
    assert {each.because_of for each in curated.left_out} == {"mended later"}
    assert kept(curate(examples[:2], TERMS)) == {"cloud 2"}


def test_what_a_user_called_wrong_is_not_learned_from_another_copy(make):
    wrong = make("A day", "bad", request_id="wrong", rejected=True)
    copy = make("A day", "bad", request_id="copy")
    other = make("A day", "good", request_id="other")
    curated = curate([wrong, copy, other], TERMS)
    assert kept(curated) == {"other"}
    assert why(curated) == {"wrong": "rejected", "copy": "rejected"}


def test_a_rejection_is_heard_over_what_was_said_before_it(make):
    examples = [
        make("A day", "bad", request_id="confirmed", source=Source.CONFIRMATION),
        make("A day", "bad", request_id="mended", source=Source.CORRECTION),
        make("A day", "bad", request_id="wrong", rejected=True),
        make("A day", "bad", request_id="confirmed later", source=Source.CONFIRMATION),
        make("A day", "bad", request_id="copy"),
    ]
    before = curate(examples[:3], TERMS)
    assert kept(before) == set()
    assert set(why(before).values()) == {"rejected"}
    assert {each.because_of for each in before.left_out} == {"", "wrong"}
    after = curate(examples, TERMS)
    assert kept(after) == {"confirmed later"}
    assert set(why(after).values()) == {"rejected"}
    twice = curate([*examples, make("A day", "bad", request_id="again", rejected=True)], TERMS)
    assert kept(twice) == set()


def test_near_duplicates_go_unless_they_are_answered_otherwise(make):
    text = "the battery of this phone lasts for two whole days of use"
    examples = [
        make(text.replace("two", "three"), "good", request_id="near"),
        make(text.replace("two", "no"), "bad", request_id="opposite"),
        make(text, "good", request_id="first"),
        make(text, "good", request_id="elsewhere", task_id="other"),
    ]
    curated = curate(examples, TERMS, CurationRules(near=0.7))
    assert kept(curated) == {"first", "opposite", "elsewhere"}
    assert why(curated) == {"near": "near_duplicate"}


def test_free_answers_have_to_be_near_too(make):
    ask = "what is the sum of nineteen and twenty three please"
    examples = [
        make(ask.replace("three", "four"), "It is forty three.", options=(), request_id="other"),
        make(ask + " now", "It is forty two.", options=(), request_id="near"),
        make(ask, "it is forty two.", options=(), request_id="first"),
    ]
    curated = curate(examples, TERMS, CurationRules(near=0.75))
    assert kept(curated) == {"first", "other"}


def test_the_order_of_the_rows_does_not_matter(make):
    rng = random.Random(0)
    examples = [
        make(
            f"text {rng.randrange(12)} of some length",
            rng.choice(["good", "bad"]),
            source=rng.choice(list(Source)),
            rejected=rng.random() < 0.1,
            at_s=float(rng.randrange(5)),
        )
        for _ in range(60)
    ]
    first = curate(examples, TERMS)
    for _ in range(5):
        rng.shuffle(examples)
        again = curate(examples, TERMS)
        assert (again.learn, again.held_out) == (first.learn, first.held_out)
        assert why(again) == why(first)


def test_none_of_what_is_kept_aside_is_learned(make):
    examples = [make(f"number {n} " + "xyz"[n % 3] * 9 + str(n * n)) for n in range(200)]
    curated = curate(examples, TERMS)
    aside = {each.example.prompt for each in curated.held_out}
    assert 20 <= len(curated.held_out) <= 60
    assert not aside & {each.example.prompt for each in curated.learn}


def rows(make, pairs, **fields):
    """Texts that differ in everything, with their answers and the device's P(good)."""
    rng = random.Random(1)
    return [
        make(
            "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(40)),
            answer,
            probabilities=(good, 1 - good),
            **fields,
        )
        for answer, good in pairs
    ]


def test_doubted_labels_weigh_less_but_a_users_word_stands(make):
    sure = [("good", 0.95), ("bad", 0.05)] * 20
    sane = rows(make, sure)
    cloud = make("odd cloud", "bad", probabilities=(0.97, 0.03), request_id="cloud")
    mended = make(
        "odd user",
        "bad",
        probabilities=(0.97, 0.03),
        request_id="user",
        source=Source.CORRECTION,
    )
    curated = curate([*sane, cloud, mended], TERMS, CurationRules(balance=1))
    used = {each.example.request_id: each for each in (*curated.learn, *curated.held_out)}
    assert used["cloud"].doubted
    assert used["cloud"].weight == pytest.approx(0.25)
    assert not used["user"].doubted
    assert used["user"].weight == 1
    assert sum(each.doubted for each in used.values()) == 1
    assert curated.noise["mood"] == pytest.approx(2 / 42, abs=0.01)
    few = curate([*sane[:10], cloud], TERMS)
    assert not any(each.doubted for each in (*few.learn, *few.held_out))
    assert few.noise == {}


def test_a_tier_that_tells_how_sure_it_is_is_believed_as_much(make):
    example = make("a text", weight=0.6)
    curated = curate([example], TERMS)
    assert [each.weight for each in (*curated.learn, *curated.held_out)] == [0.6]


def test_classes_are_balanced_within_the_cap_and_the_sum_of_weights_stays(make):
    examples = rows(make, [("good", 0.5)] * 90 + [("bad", 0.5)] * 10)
    weights = {"good": 0.0, "bad": 0.0}
    curated = curate(examples, TERMS, CurationRules(balance=3, doubted_rows=1000))
    for each in curated.learn:
        weights[each.example.answer] += each.weight
    assert sum(weights.values()) == pytest.approx(len(curated.learn))
    counts = [sum(each.example.answer == a for each in curated.learn) for a in ("good", "bad")]
    before, after = counts[0] / counts[1], weights["good"] / weights["bad"]
    assert 1 < after < before
    assert before / after <= 9 + 1e-9  # three times one way, three times the other
    free = curate([make("a free one", "x", options=())], TERMS)
    assert [each.weight for each in (*free.learn, *free.held_out)] == [1.0]


@pytest.mark.parametrize(
    "counts", [(300, 4), (4, 300, 300), (1, 1, 500), (7, 7), (50,), (1, 30, 9)]
)
@pytest.mark.parametrize("balance", [1.0, 1.5, 3.0, 100.0])
def test_classes_gain_on_each_other_by_the_bound_twice_at_most(make, counts, balance):
    options = tuple("abc"[: max(2, len(counts))])
    given = [
        Weighted(make(f"text {name} {n}", name, options=options), 0.5 + n % 2 / 2)
        for name, count in zip(options, counts, strict=False)
        for n in range(count)
    ]
    after = _balanced(given, balance)
    assert sum(e.weight for e in after) == pytest.approx(sum(e.weight for e in given))
    factors = {e.example.answer: e.weight / b.weight for e, b in zip(after, given, strict=True)}
    assert max(factors.values()) <= balance**2 * min(factors.values()) + 1e-9
    if balance == 100.0 and len(counts) == 2:
        totals = [sum(e.weight for e in after if e.example.answer == name) for name in options]
        assert totals[0] == pytest.approx(totals[1])


def test_statistics_add_up(make):
    examples = [
        *rows(make, [("good", 0.9), ("bad", 0.2)] * 30),
        make("to wait", source=Source.DEVICE),
        make("in doubt", source=Source.DEVICE, confidence=0.4),
        make("note", task_id="diary", options=()),
    ]
    curated = curate(examples, TERMS)
    stats = summarise(examples, curated)
    used = stats.learn + stats.held_out + stats.rehearsal
    assert stats.examples == 63 == used + sum(stats.left_out.values())
    assert stats.sources == {"cloud": 61, "device": 2}
    diary, mood = stats.tasks
    assert (diary.task, mood.task) == ("diary", "mood")
    assert mood.left_out == {"waiting": 1}
    assert (mood.rehearsal, diary.rehearsal) == (1, 0)
    assert sum(each.learn for each in mood.classes) == mood.learn
    assert sum(task.learn for task in stats.tasks) == stats.learn


def test_own_answers_are_rehearsed_where_nobody_has_spoken(make):
    lessons = [*rows(make, [("good", 0.9), ("bad", 0.2)] * 20), make("wrong day", rejected=True)]
    aside = next(f"aside {n}" for n in range(99) if make(f"aside {n}").held_out)
    learned = [f"fine {n}" for n in range(99) if not make(f"fine {n}").held_out]
    own = [
        make(learned[0], request_id="sure", source=Source.DEVICE, confidence=0.9),
        make(learned[1], request_id="untold", source=Source.DEVICE),
        make(learned[2], request_id="unsure", source=Source.DEVICE, confidence=0.4),
        make(learned[3], "good", request_id="before", source=Source.DEVICE),
        make(learned[3], "bad", request_id="again", source=Source.DEVICE),
        make(aside, request_id="aside", source=Source.DEVICE),
        make("Wrong  day", request_id="called wrong", source=Source.DEVICE),
        make(lessons[0].messages[0].content, request_id="told", source=Source.DEVICE),
        make(learned[4], request_id="free", options=(), source=Source.DEVICE),
        make(learned[5], request_id="other task", task_id="else", source=Source.DEVICE),
    ]
    curated = curate([*lessons, *own], TERMS)
    weights = {each.example.request_id: each.weight for each in curated.rehearsal}
    assert weights == pytest.approx({"sure": 0.09, "untold": 0.1, "again": 0.1})
    waiting = {name for name, reason in why(curated).items() if reason == "waiting"}
    assert waiting == {each.request_id for each in own} - set(weights)
    without = curate([*lessons, *own], TERMS, CurationRules(rehearsal=0))
    assert without.rehearsal == ()
    assert (without.learn, without.held_out) == (curated.learn, curated.held_out)
    assert sum(reason == "waiting" for reason in why(without).values()) == len(own)


def test_what_is_rehearsed_weighs_no_more_than_the_lessons(make):
    own = [make(f"own {n}", source=Source.DEVICE) for n in range(100)]
    lessons = [make(f"lesson {n}") for n in range(4)]
    curated = curate([*own, *lessons], TERMS)
    assert len(curated.rehearsal) > 60
    total = sum(each.weight for each in curated.rehearsal)
    assert total == pytest.approx(sum(each.weight for each in curated.learn))
    assert curate(own, TERMS).rehearsal == ()


@pytest.mark.parametrize(
    "rule",
    [
        {"near": 0},
        {"trust": 0},
        {"doubted_rows": 1},
        {"lowest": 2},
        {"balance": 0.5},
        {"rehearsal": 2},
    ],
)
def test_impossible_rules_are_refused(rule):
    with pytest.raises(InvalidInput, match=f"rules.{next(iter(rule))}"):
        CurationRules(**rule)
