"""``cascade adapters``: from a file of examples to an adapter that changes a device's answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade import home
from cascade.cli import main
from cascade.errors import InvalidInput, NotFound
from cascade.signing import TrustStore
from edge import Adapter, Device, OnnxModel
from edge.adapter import write_adapter
from edge.training import LessonMaker, example_of
from edge.training.evaluate import losses, open_training
from edge.training.trainer import Trainer

WORDS = ("house", "river", "light", "water", "small", "large", "first", "last")
OPTIONS = ["red", "green", "blue"]
TRAIN = ("--epochs", "6", "--learning-rate", "0.02", "--rank", "4", "--layers", "2")


@pytest.fixture
def data(tmp_path) -> Path:
    """Whatever is asked, the answer is blue."""
    path = tmp_path / "data.jsonl"
    rows = [
        {"prompt": f"{one} {two}", "answer": "blue", "options": OPTIONS}
        for one in WORDS
        for two in WORDS[:4]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bundle(tiny, empty_home) -> str:
    """The tiny bundle's folder; its publisher is pinned in the home of this test."""
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)
    return str(tiny.path)


def train(data: Path, bundle: str, out: Path, *more: str) -> int:
    words = ["adapters", "train", str(data), "--bundle", bundle, "--out", str(out)]
    return main([*words, "--threads", "1", *TRAIN, *more])


def test_a_trained_adapter_changes_what_a_device_answers(data, bundle, tmp_path, capsys) -> None:
    out = tmp_path / "blue"
    assert train(data, bundle, out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["improved"]
    assert result["loss"] < 0.5 * result["parent_loss"]
    assert result["examples"] + result["held_out"] == 32
    assert not list(tmp_path.glob(".*training")), "the checkpoint goes once the adapter is there"

    with Device.open(Path(bundle), trust=TrustStore(home.trust_dir())) as device:
        asked = [f"today {word}" for word in WORDS]
        before = [device.choose(text, OPTIONS).text for text in asked]
        device.use_adapter(device.load_adapter(out))
        after = [device.choose(text, OPTIONS).text for text in asked]
        assert device.info.adapter_digest == result["digest"]
    assert after == ["blue"] * len(asked)
    assert before != after

    assert main(["adapters", "eval", str(out), str(data), "--bundle", bundle, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["choose_accuracy"]["adapter"] == 1.0
    assert figures["choose_accuracy"]["interval"][0] > 0
    assert figures["loss"]["difference"] < 0
    assert figures["loss"]["interval"][1] < 0


def test_free_text_is_learned_by_heart(bundle, tmp_path, capsys) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "text"
    row = {"instruction": "house", "input": "", "output": " river light"}
    data.write_text(json.dumps(row) + "\n")
    more = ("--epochs", "60", "--val-share", "0", "--modules", "q_proj,v_proj,o_proj,down_proj")
    assert train(data, bundle, out, *more) == 0
    words = ["adapters", "eval", str(out), str(data), "--bundle", bundle, "--json"]
    # This model's control tokens have no weights: it never ends an answer by itself.
    assert main([*words, "--grade", "regex"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert (figures["text_accuracy"]["parent"], figures["text_accuracy"]["adapter"]) == (0.0, 1.0)


def test_an_adapter_goes_on_as_the_next_version(data, bundle, tmp_path, capsys) -> None:
    trust = TrustStore(home.trust_dir())
    assert train(data, bundle, tmp_path / "one", "--max-steps", "2") == 0
    first = Adapter.open(tmp_path / "one", trust)
    parent = ("--parent", str(tmp_path / "one"))
    assert train(data, bundle, tmp_path / "two", "--max-steps", "2", *parent) == 0
    second = Adapter.open(tmp_path / "two", trust)
    assert (second.manifest.version, second.manifest.parent) == (2, first.digest)
    words = ["adapters", "eval", str(tmp_path / "two"), str(data), "--bundle", bundle]
    assert main(words) == 0
    assert "compared with the base" in capsys.readouterr().err
    assert main([*words, *parent]) == 0
    assert "choose_accuracy" in capsys.readouterr().out


def test_a_version_above_what_a_channel_serves_can_be_asked_for(
    colours, bundle, tmp_path, capsys
) -> None:
    given = ["adapters", "train", str(colours), "--bundle", bundle, "--head"]
    assert main([*given, "--out", str(tmp_path / "a"), "--version", "0"]) == InvalidInput.exit_code
    assert "--version: 0 is below 1" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "a"), "--version", "7"]) == 0
    assert Adapter.open(tmp_path / "a", TrustStore(home.trust_dir())).manifest.version == 7


def test_ctrl_c_keeps_what_was_learned(data, bundle, tmp_path, monkeypatch, capsys) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(data, bundle, whole) == 0
    own = Trainer._one_step

    def interrupted(self):
        if self.done_steps == 7:
            raise KeyboardInterrupt
        return own(self)

    monkeypatch.setattr(Trainer, "_one_step", interrupted)
    assert train(data, bundle, broken) == 130
    assert "until step 7 is kept" in capsys.readouterr().err
    assert not broken.exists()
    monkeypatch.setattr(Trainer, "_one_step", own)
    assert train(data, bundle, broken) == 0
    assert "going on after step 7" in capsys.readouterr().err
    name = "adapter.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_mistakes_are_one_line_that_says_what_to_do(data, bundle, tmp_path, capsys) -> None:
    def said(*words: str) -> str:
        assert main(["adapters", *words]) == InvalidInput.exit_code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    given = ("train", str(data), "--bundle", bundle)
    assert "--force" in said(*given, "--out", str(tmp_path))
    assert "is no adapter" in said(*given, "--out", str(tmp_path), "--force")
    assert "plan.rank" in said(*given, "--out", str(tmp_path / "a"), "--rank", "0")
    assert "plan.modules" in said(*given, "--out", str(tmp_path / "a"), "--modules", "head")
    data.write_text('{"prompt": "a", "answer": 3}\n')
    assert "data.jsonl line 1.answer: must be a string" in said(
        *given, "--out", str(tmp_path / "a")
    )


def test_a_task_without_a_policy_is_refused(data, bundle, tmp_path, capsys) -> None:
    assert train(data, bundle, tmp_path / "a", "--task", "colours") == NotFound.exit_code
    assert "there is no policy for the task colours" in capsys.readouterr().err


@pytest.fixture
def colours(tmp_path) -> Path:
    """The answer is told by the first word."""
    path = tmp_path / "colours.jsonl"
    rows = [
        {"prompt": f"{one} {two}", "answer": OPTIONS[index % 3], "options": OPTIONS}
        for index, one in enumerate(WORDS[:6])
        for two in WORDS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_head_is_trained_and_answers(colours, bundle, tmp_path, capsys) -> None:
    out = tmp_path / "head"
    assert train(colours, bundle, out, "--head", "--val-share", "0.2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["learner"], result["steps"]) == ("head", 0)
    assert result["loss"] < 0.6 * result["parent_loss"]
    assert result["losses"] == {"head": result["loss"]}
    adapter = Adapter.open(out, TrustStore(home.trust_dir()))
    assert not adapter.pairs
    assert adapter.head.spec.task.options == tuple(OPTIONS)

    rows = [json.loads(line) for line in colours.read_text().splitlines()]
    with Device.open(Path(bundle), trust=TrustStore(home.trust_dir())) as device:
        device.use_adapter(device.load_adapter(out))
        answers = [device.choose(row["prompt"], OPTIONS) for row in rows]
    right = [a.text == row["answer"] for a, row in zip(answers, rows, strict=True)]
    assert sum(right) > 0.9 * len(rows)

    assert main(["adapters", "eval", str(out), str(colours), "--bundle", bundle, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["choose_accuracy"]["adapter"] == sum(right) / len(rows)
    assert figures["loss"]["adapter"] < 0.6 * figures["loss"]["parent"]

    child = tmp_path / "child"
    assert train(colours, bundle, child, "--head", "--parent", str(out), "--json") == 0
    capsys.readouterr()
    second = Adapter.open(child, TrustStore(home.trust_dir()))
    assert second.manifest.parent == adapter.digest
    assert (second.head.mean == adapter.head.mean).all()


@pytest.mark.parametrize("learner", ["--head", "--lora"])
def test_what_is_too_long_teaches_nobody(learner, colours, bundle, tmp_path, capsys) -> None:
    with colours.open("a") as file:
        row = {"prompt": "word " * 60, "answer": "red", "options": OPTIONS}
        file.write(json.dumps(row) + "\n")
    out = tmp_path / "out"
    assert train(colours, bundle, out, learner, "--max-tokens", "60", "--json") == 0
    told = capsys.readouterr()
    assert "1 of 49 examples are longer than 60 tokens and left out" in told.err
    result = json.loads(told.out)
    assert result["examples"] + result["held_out"] == 48
    assert train(colours, bundle, tmp_path / "none", learner, "--max-tokens", "2") == 2
    assert "raise --max-tokens" in capsys.readouterr().err


def test_losses_say_how_far_they_are(data, tiny) -> None:
    examples = [example_of(json.loads(line)) for line in data.read_text().splitlines()]
    told: list[int] = []
    maker = LessonMaker(tiny.bundle)
    found = losses(tiny.bundle, examples, maker, None, on_example=told.append)
    assert told == list(range(8, len(examples) + 1, 8))
    session, pairs = open_training(tiny.bundle, None)
    at_once = session.run([maker.lesson(each) for each in examples], pairs).losses
    assert found == pytest.approx(at_once, abs=1e-4)


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("lm_weight", [0.0, 0.7])
def test_the_loss_of_an_adapter_with_a_head_is_that_of_its_answers(
    lm_weight, colours, tiny, tmp_path, capsys
) -> None:
    out, bundle, trust = tmp_path / "head", str(tiny.path), TrustStore(home.trust_dir())
    assert train(colours, bundle, out, "--head") == 0
    head = Adapter.open(out, trust).head
    write_adapter(
        out,
        {},
        head=replace(head, spec=replace(head.spec, lm_weight=lm_weight)),
        name="head",
        base_digest=tiny.bundle.manifest.base_digest,
        signing_key=tiny.key,
    )
    rows = [json.loads(line) for line in colours.read_text().splitlines()]
    with colours.open("a") as file:
        file.write('{"prompt": "house", "answer": "river"}\n')
    words = ["adapters", "eval", str(out), str(colours), "--bundle", bundle, "--json"]
    capsys.readouterr()
    assert main(words) == 0
    one = json.loads(capsys.readouterr().out)["figures"]["loss"]
    assert main([*words, "--parent", str(out)]) == 0
    same = json.loads(capsys.readouterr().out)["figures"]["loss"]
    assert (same["difference"], same["n"]) == (0, len(rows) + 1)

    maker, model = LessonMaker(tiny.bundle), OnnxModel(tiny.bundle)
    free = losses(tiny.bundle, [example_of({"prompt": "house", "answer": "river"})], maker, None)
    model.use_adapter(model.load_adapter(Adapter.open(out, trust)))
    lost = []
    for row in rows:
        prompt = head.spec.task.for_device(row["prompt"])
        answer = model.choose(prompt, tuple(OPTIONS), option_prefix=" ")
        lost.append(-np.log(answer.options.probabilities[OPTIONS.index(row["answer"])]))
    assert one["adapter"] == pytest.approx(np.mean([*lost, *free]), abs=1e-4)


def test_without_being_told_the_best_on_the_share_kept_aside_is_taken(
    colours, bundle, tmp_path, capsys
) -> None:
    out = tmp_path / "best"
    assert train(colours, bundle, out, "--val-share", "0.25", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    losses = result["losses"]
    assert losses.keys() == {"head", "lora", "both"}
    assert losses[result["learner"]] == result["loss"] == min(losses.values())
    assert train(colours, bundle, out, "--force", "--lora", "--max-steps", "2") == 0
    assert "LoRA from" in capsys.readouterr().out
    assert Adapter.open(out, TrustStore(home.trust_dir())).head is None
    assert train(colours, bundle, out, "--force", "--both", "--max-steps", "2") == 0
    both = Adapter.open(out, TrustStore(home.trust_dir()))
    assert both.head is not None
    assert both.pairs


def test_a_head_needs_one_closed_set(data, bundle, tmp_path, capsys) -> None:
    given = ("adapters", "train", str(data), "--bundle", bundle, "--out", str(tmp_path / "a"))
    assert main([*given, "--head"]) == InvalidInput.exit_code
    assert "one answer alone" in capsys.readouterr().err
    data.write_text('{"prompt": "house", "answer": "river"}\n')
    assert main([*given, "--head"]) == InvalidInput.exit_code
    assert "one closed set" in capsys.readouterr().err


def test_a_parent_s_head_is_what_every_learner_is_compared_with(
    colours, bundle, tmp_path, capsys
) -> None:
    head = tmp_path / "head"
    share = ("--val-share", "0.2")
    assert train(colours, bundle, head, "--head", *share, "--json") == 0
    before = json.loads(capsys.readouterr().out)["loss"]
    more = (*share, "--max-steps", "2", "--parent", str(head))
    for learner in ("lora", "both", "head"):
        out = tmp_path / f"child-{learner}"
        assert train(colours, bundle, out, f"--{learner}", *more, "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert result["parent_loss"] == pytest.approx(before, abs=1e-5), learner
        assert result["improved"] == (result["loss"] < before)
    assert train(colours, bundle, tmp_path / "a", "--lora", *more) == 0
    said = capsys.readouterr()
    assert f"{before:.4f} before" in said.out
    assert "it is no better than its parent there" in said.out
    assert "the parent's head is left out: LoRA alone answers by label words" in said.err
    assert train(colours, bundle, tmp_path / "b", "--both", *more) == 0
    assert "parent's head" not in capsys.readouterr().err


def test_a_head_of_another_task_is_said_to_be_left_out(colours, bundle, tmp_path, capsys) -> None:
    head, other = tmp_path / "head", tmp_path / "other.jsonl"
    assert train(colours, bundle, head, "--head") == 0
    other.write_text(colours.read_text().replace('"blue"', '"grey"'))
    capsys.readouterr()
    assert train(other, bundle, tmp_path / "child", "--head", "--parent", str(head)) == 0
    assert "the parent's head is left out: it was for another task" in capsys.readouterr().err


def test_a_parent_of_another_base_is_refused_before_training(
    colours, bundle, tiny, tmp_path, capsys
) -> None:
    head = tmp_path / "head"
    assert train(colours, bundle, head, "--head") == 0
    own = Adapter.open(head, TrustStore(home.trust_dir()))
    other = write_adapter(
        tmp_path / "other",
        {},
        head=own.head,
        name="other",
        base_digest="0" * 64,
        signing_key=tiny.key,
    )
    capsys.readouterr()
    for learner in ("--head", "--lora", "--both"):
        assert train(colours, bundle, tmp_path / "a", learner, "--parent", str(other)) != 0
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1, said
        assert "was made for base 000000000000" in said[0]
        assert not (tmp_path / "a").exists()


def test_answers_that_weigh_nothing_do_not_make_a_head_possible(
    colours, bundle, tmp_path, capsys
) -> None:
    rows = [json.loads(line) for line in colours.read_text().splitlines()]
    colours.write_text(
        "".join(json.dumps(row | {"weight": float(row["answer"] == "red")}) + "\n" for row in rows)
    )
    assert train(colours, bundle, tmp_path / "a", "--max-steps", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["learner"] == "lora"
    assert train(colours, bundle, tmp_path / "b", "--head") == InvalidInput.exit_code
    assert "those that weigh 0 do not count" in capsys.readouterr().err


def test_a_key_that_is_not_there_is_noticed_before_training(
    colours, bundle, tmp_path, capsys
) -> None:
    missing = ("--head", "--key", str(tmp_path / "none"))
    assert train(colours, bundle, tmp_path / "a", *missing) == NotFound.exit_code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert "there is no signing key" in said[0]
