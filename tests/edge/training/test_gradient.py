"""The gradient graph against torch's autograd and against differences of the loss itself."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType as BlockKind

from cascade.errors import BundleError, InvalidInput
from cascade.signing import SigningKey, TrustStore
from edge.adapter import LoraPair
from edge.build import build_from_gguf
from edge.build import frozen as frozen_module
from edge.bundle import GRADIENT_GRAPH, SCORES_GRAPH, TRUNK_GRAPH, Bundle
from edge.memory import give_back
from edge.training import GradientSession, choice_lesson, text_lesson
from edge.training import gradient as gradient_module
from edge.training.packing import in_packs, pack
from edge.trie import build_trie
from tests.edge.build.folders import IDS
from tests.edge.build.tiny import Tiny

from .conftest import Kind
from .reference import Reference, flat, random_pairs, relative_error

PROMPT, EMPTY = IDS[:6], IDS[:2]
# The second answer is the beginning of the first.
ANSWERS = [[5, 6, 7], [5, 6], [5, 9], [11]]
# Its tree has branches of more than one token.
BUSHY = [[5, 6, 7], [5, 9, 8], [11, 6, 4], [11, 9, 3], [12, 5]]


def scores(reference: Reference, prompt: list[int]) -> torch.Tensor:
    """Log probabilities of ``ANSWERS``, as edge.choose defines them."""
    rows = reference.log_probabilities(prompt, [5, 6, 7])
    began = rows[0, 5] + rows[1, 6]
    return torch.stack(
        [
            began + rows[2, 7],
            began + torch.log(1 - rows[2, 7].exp()),
            rows[0, 5] + rows[1, 9],
            rows[0, 11],
        ]
    )


def test_gradients_of_text_are_torch_s(pair) -> None:
    bundle, model = pair
    session = GradientSession(bundle, keep="nothing")
    lessons = [text_lesson(PROMPT, IDS[6:10]), text_lesson(IDS[8:12], IDS[3:5], weight=2.0)]
    pairs = random_pairs(session)
    outcome = session.run(lessons, pairs)
    with Reference(model, pairs) as reference:
        losses = [
            reference.text_loss(PROMPT, IDS[6:10]),
            reference.text_loss(IDS[8:12], IDS[3:5]),
        ]
        expected = reference.gradients((losses[0] + 2 * losses[1]) / 3)
    assert outcome.losses == pytest.approx([float(loss.detach()) for loss in losses], rel=1e-5)
    assert relative_error(outcome, expected) < 1e-4


def test_gradients_of_a_closed_set_are_torch_s(pair) -> None:
    bundle, model = pair
    session = GradientSession(bundle, keep="nothing")
    lessons = [choice_lesson(PROMPT, build_trie(ANSWERS), i, prior=EMPTY) for i in (1, 2)]
    pairs = random_pairs(session)
    outcome = session.run(lessons, pairs)
    with Reference(model, pairs) as reference:
        logs = torch.log_softmax(scores(reference, PROMPT) - scores(reference, EMPTY), 0)
        expected = reference.gradients(-(logs[1] + logs[2]) / 2)
    assert outcome.losses == pytest.approx([-float(x.detach()) for x in logs[1:3]], rel=1e-4)
    assert relative_error(outcome, expected) < 1e-3


def test_gradients_are_slopes_of_the_loss(built) -> None:
    bundle, _ = built(Kind("qwen2", "int4", 2, tied=True))
    session = GradientSession(bundle, keep="nothing")
    lessons = [
        text_lesson(PROMPT, IDS[6:10]),
        choice_lesson(IDS[3:9], build_trie(ANSWERS), 0, prior=EMPTY),
    ]
    pairs = random_pairs(session)
    slope = flat(session.run(lessons, pairs).gradients)
    rng = np.random.default_rng(3)
    for _ in range(3):
        towards = {
            name: LoraPair(*(rng.normal(size=half.shape) for half in (pair.a, pair.b)))
            for name, pair in pairs.items()
        }
        step = 3e-3

        def moved(by: float, towards=towards) -> float:
            return session.run(
                lessons,
                {
                    name: LoraPair(
                        (pair.a + by * towards[name].a).astype(np.float32),
                        (pair.b + by * towards[name].b).astype(np.float32),
                    )
                    for name, pair in pairs.items()
                },
            ).loss

        measured = (moved(step) - moved(-step)) / (2 * step)
        assert measured == pytest.approx(float(slope @ flat(towards)), rel=0.02)


def test_a_loss_does_not_depend_on_what_shares_its_run(built) -> None:
    bundle, _ = built(Kind("llama", "int8", 4, tied=True))
    session = GradientSession(bundle)
    pairs = random_pairs(session)
    lessons = [
        text_lesson(IDS[:7], IDS[7:9]),
        choice_lesson(PROMPT, build_trie(ANSWERS), 3, prior=EMPTY),
        text_lesson(IDS[2:12], IDS[12:13]),
    ]
    together = session.run(lessons, pairs)
    alone = [session.run([lesson], pairs) for lesson in lessons]
    assert together.losses == pytest.approx([each.loss for each in alone], rel=1e-5)
    mean = sum(flat(each.gradients) for each in alone) / 3
    assert np.allclose(flat(together.gradients), mean, rtol=1e-3, atol=1e-6)


def test_a_tree_is_read_as_each_of_its_paths_is(built) -> None:
    bundle, _ = built(Kind("llama", "int8", 4, tied=True))
    session = GradientSession(bundle, keep="nothing")
    own = random_pairs(session)
    trie = build_trie(BUSHY)
    expected = []
    for answer in BUSHY:
        loss = session.run([text_lesson(PROMPT, answer)], own).loss
        before = session.run([text_lesson(EMPTY, answer)], own).loss
        expected.append(len(answer) * (before - loss))
    (found,) = session.probabilities([choice_lesson(PROMPT, trie, 0, prior=EMPTY)], own)
    weights = np.exp(np.array(expected) - max(expected))
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-3)


def test_a_device_chooses_with_the_probabilities_that_are_learned(tmp_path) -> None:
    """Answers of several tokens, of which the second and later ones differ."""
    from cascade.request import Message
    from cascade.testing import random_model
    from edge.model import OnnxModel
    from edge.training import LessonMaker, TrainingExample

    random_model.write_random_model(tmp_path / "t.gguf", seed=0, family="llama", context_tokens=512)
    key = SigningKey.generate()
    trust = TrustStore(tmp_path / "trust")
    trust.pin("test", key.public)
    made = build_from_gguf(
        tmp_path / "t.gguf",
        tmp_path / "bundle",
        name="tiny",
        base_model="random weights, seed 0",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
        accuracy_level=0,
        gradient_layers=1,
    )
    bundle = Bundle.open(made, trust)
    options = ("start timer", "start fan", "stop timer now", "stop fan now", "lights")
    maker = LessonMaker(bundle)
    task = maker.task_of(options)
    example = TrainingExample((Message("user", "red water"),), options[0], options)
    (found,) = GradientSession(bundle, keep="nothing").probabilities([maker.lesson(example)], {})
    answer = OnnxModel(bundle).choose(
        task.for_device("red water"),
        options,
        prior_prompt=task.prior_prompt(),
        option_prefix=task.option_prefix,
    )
    assert answer.options is not None
    np.testing.assert_allclose(found, answer.options.probabilities, rtol=2e-3)


def test_a_bundle_without_the_graph_of_scores_gives_the_same(built) -> None:
    bundle, _ = built(Kind("qwen2", "int4", 2, tied=True))
    files = {name: e for name, e in bundle.manifest.files.items() if name != SCORES_GRAPH}
    assert len(files) + 1 == len(bundle.manifest.files)
    older = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    lessons = [
        choice_lesson(IDS[place : place + 4], build_trie(ANSWERS), 1, prior=EMPTY)
        for place in range(3)
    ]
    pairs = random_pairs(GradientSession(bundle))
    found, expected = (GradientSession(b).probabilities(lessons, pairs) for b in (bundle, older))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    losses = GradientSession(bundle).run(lessons, pairs).losses
    np.testing.assert_allclose([-np.log(each[1]) for each in found], losses, rtol=1e-3)


def test_a_loss_needs_no_way_back_where_scores_were_asked_before(built, monkeypatch) -> None:
    bundle, _ = built(Kind("qwen2", "int4", 2, tied=True))
    session = GradientSession(bundle)
    lessons = [choice_lesson(PROMPT[:size], build_trie(ANSWERS), 1) for size in (2, 4)]
    pairs = random_pairs(session)
    expected = session.run(lessons, pairs).losses
    assert session.losses(lessons, pairs) == list(expected)
    text = text_lesson(PROMPT, IDS[6:8])
    of_text = session.run([text], pairs).losses
    session.probabilities(lessons, pairs)
    assert session.losses([text], pairs) == list(of_text)
    monkeypatch.setattr(session, "_gradient_graph", lambda: pytest.fail("it was asked"))
    np.testing.assert_allclose(session.losses(lessons, pairs), expected, rtol=1e-3)


def test_text_has_no_answers_to_score(built) -> None:
    bundle, _ = built(Kind("qwen2", "int4", 2, tied=True))
    with pytest.raises(InvalidInput, match="lesson: is of no closed set"):
        GradientSession(bundle).probabilities([text_lesson(PROMPT, IDS[6:8])], {})


def test_a_trunk_that_misreads_trees_is_refused(built, tmp_path) -> None:
    bundle, _ = built(Kind("llama", "int8", 4, tied=True))
    folder = tmp_path / "old"
    shutil.copytree(bundle.path, folder)
    graph = onnx.load(folder / TRUNK_GRAPH, load_external_data=False)
    for node in graph.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[3] = node.input[4] = ""
    kept = [given for given in graph.graph.input if given.name != "past"]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    onnx.save(graph, folder / TRUNK_GRAPH)
    session = GradientSession(dataclasses.replace(bundle, path=folder), keep="nothing")
    with pytest.raises(BundleError, match="build the bundle again"):
        session.run([text_lesson(PROMPT, IDS[6:8])], {})


def test_runs_are_cut_where_they_get_long(built, monkeypatch) -> None:
    bundle, _ = built(Kind("llama", "int8", 4, tied=True))
    session = GradientSession(bundle)
    pairs = random_pairs(session)
    lessons = [text_lesson(IDS[i : i + 6], IDS[i + 6 : i + 8], weight=i + 1) for i in range(6)]
    whole = session.run(lessons, pairs)
    monkeypatch.setattr(gradient_module, "PACK_TOKENS", 15)
    cut = session.run(lessons, pairs)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    assert np.allclose(flat(cut.gradients), flat(whole.gradients), rtol=1e-3, atol=1e-6)


def test_what_lessons_begin_with_is_in_a_run_once(built) -> None:
    bundle, _ = built(Kind("llama", "int8", 4, tied=True))
    trie = build_trie(BUSHY)  # three inner nodes behind the root
    prior = IDS[:8]
    lessons = [choice_lesson([*prior, 20 + i], trie, i, prior=prior) for i in range(5)]
    session = GradientSession(bundle)
    pairs = random_pairs(session)
    packed = pack(lessons, [1.0] * 5)
    assert len(packed.taken) == len(prior) + len(trie.inner) - 1 + 5 * len(trie.inner)
    # Room for what the first lesson shares with each other one is not counted.
    own = len(trie.inner)
    assert [len(each) for each in in_packs(lessons, 3 * own)] == [3, 2]
    together = session.run(lessons, pairs)
    alone = [session.run([lesson], pairs) for lesson in lessons]
    assert together.losses == pytest.approx([each.loss for each in alone], rel=1e-5)
    mean = sum(flat(each.gradients) for each in alone) / 5
    assert np.allclose(flat(together.gradients), mean, rtol=1e-3, atol=1e-6)


def test_the_loss_is_that_of_the_decode_graph(tiny) -> None:
    """A lesson's loss is what the device would say, with its adapter active."""
    from cascade.request import Message
    from edge.model import OnnxModel
    from edge.training import LessonMaker, TrainingExample

    example = TrainingExample((Message("user", "red water"),), "good", ("good", "bad", "good day"))
    maker = LessonMaker(tiny.bundle)
    session = GradientSession(tiny.bundle, keep="nothing")
    (loss,) = session.run([maker.lesson(example)], {}).losses
    task = maker.task_of(example.options)
    answer = OnnxModel(tiny.bundle).choose(
        task.for_device("red water"),
        example.options,
        prior_prompt=task.prior_prompt(),
        option_prefix=task.option_prefix,
    )
    # The decode graph rounds activations to eight bits.
    assert float(np.exp(-loss)) == pytest.approx(answer.options.probabilities[0], abs=0.05)


def test_gradients_do_not_depend_on_which_floats_are_kept(tmp_path, monkeypatch) -> None:
    """Of every kind of block: with minima and without, 4 and 8 bits, several in one linear."""
    kinds = {"attn_v": BlockKind.Q8_0, "attn_output": BlockKind.Q4_0, "ffn_down": BlockKind.Q5_0}
    gguf = Tiny(types=kinds).write(tmp_path / "tiny.gguf")
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("tests", key.public)
    lessons = [text_lesson(PROMPT, IDS[6:10]), choice_lesson(PROMPT, build_trie(ANSWERS), 1)]
    steps, folded = [], []
    for room in (1 << 24, 50_000, 0):
        monkeypatch.setattr(frozen_module, "_KEPT", room)
        path = build_from_gguf(
            gguf,
            tmp_path / f"{room}",
            name="tiny",
            base_model="random weights",
            licence="Apache-2.0",
            commercial_use=True,
            signing_key=key,
            gradient_layers=2,
        )
        bundle = Bundle.open(path, trust)
        nodes = onnx.load(bundle.file(GRADIENT_GRAPH), load_external_data=False).graph.node
        folded.append(sum(node.op_type == "Cast" for node in nodes))
        session = GradientSession(bundle, keep="nothing")
        steps.append(flat(session.run(lessons, random_pairs(session)).gradients))
    assert folded[0] > folded[1] > folded[2]
    assert np.abs(steps[0]).max() > 1e-3
    for step in steps[1:]:
        np.testing.assert_allclose(step, steps[0], rtol=1e-4, atol=1e-6)


def test_bytes_of_a_bundle_s_base_do_not_change(built, tiny, tmp_path) -> None:
    from cascade.testing import random_model
    from edge.bundle import inspect

    gguf = tmp_path / "tiny.gguf"
    random_model.write_random_model(gguf, seed=0, family="llama", context_tokens=512)
    without = build_from_gguf(
        gguf,
        tmp_path / "without",
        name="tiny",
        base_model="random weights, seed 0",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=tiny.key,
        gradient_layers=0,
    )
    manifest = inspect(without)
    assert "gradient.onnx" not in manifest.files
    assert manifest.base_digest == tiny.bundle.manifest.base_digest


def test_a_bundle_without_the_graph_says_what_to_do(without_gradient) -> None:
    with pytest.raises(BundleError, match="cascade bundle build --gradient"):
        GradientSession(without_gradient)
    manifest = dataclasses.replace(without_gradient.manifest, graph="exported")
    with pytest.raises(BundleError, match="PEFT"):
        GradientSession(dataclasses.replace(without_gradient, manifest=manifest))


def test_activations_are_kept_from_session_to_session(tiny, tmp_path, monkeypatch) -> None:
    lesson = text_lesson([5, 6, 7, 8], [9, 10])
    first = GradientSession(tiny.bundle, keep=tmp_path).run([lesson], {}).loss
    assert len(list(tmp_path.glob("*/*.npy"))) == 1
    again = GradientSession(tiny.bundle, keep=tmp_path)
    monkeypatch.setattr(again.activations._trunk, "hidden", lambda _: pytest.fail("not kept"))
    assert again.run([lesson], {}).loss == first


def test_a_damaged_activation_is_computed_again(tiny, tmp_path) -> None:
    lesson = text_lesson([5, 6, 7, 8], [9, 10])
    first = GradientSession(tiny.bundle, keep=tmp_path).run([lesson], {}).loss
    (kept,) = tmp_path.glob("*/*.npy")
    kept.write_bytes(kept.read_bytes()[:-7])
    assert GradientSession(tiny.bundle, keep=tmp_path).run([lesson], {}).loss == first


def test_a_trunk_is_freed_once_and_its_memory_given_back(tiny, tmp_path, monkeypatch) -> None:
    session = GradientSession(tiny.bundle)
    given: list[int] = []
    monkeypatch.setattr("edge.training.trunk.give_back", lambda: given.append(1))
    lesson = text_lesson(IDS[:4], IDS[4:6])
    session.activations.get(lesson.segments[0])
    for _ in range(2):
        session.activations.release_trunk()
    assert given == [1]
    give_back()


def test_the_graphs_that_learn_are_not_in_memory_while_examples_are_read(
    tiny, tmp_path, monkeypatch
) -> None:
    lesson, closed = text_lesson(IDS[:4], IDS[4:6]), choice_lesson(PROMPT, build_trie(ANSWERS), 1)
    plain = GradientSession(tiny.bundle)
    expected = plain.losses([lesson, closed], {})
    session = GradientSession(tiny.bundle, keep=tmp_path)
    hidden, beside = session.activations._trunk.hidden, []

    def watched(segment):
        beside.append((session._trainer, session._scorer))
        return hidden(segment)

    monkeypatch.setattr(session.activations._trunk, "hidden", watched)
    session.probabilities([closed], {})
    assert session._scorer is not None
    beside.clear()
    assert list(session.read([lesson, closed])) == [1, 2]
    assert beside == [(None, None)]
    assert session.losses([lesson, closed], {}) == pytest.approx(expected, abs=1e-3)
    # What is kept already frees nothing.
    graph = session._trainer
    assert graph is not None
    assert list(session.read([lesson, closed])) == [1, 2]
    assert session._trainer is graph
    assert len(beside) == 1
