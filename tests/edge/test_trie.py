"""A trie holds every answer once, whatever their tokens share."""

from __future__ import annotations

import pytest
from hypothesis import given

from cascade.errors import InvalidInput
from edge.trie import build_trie
from tests.edge.tiny_language import ANSWERS


@given(ANSWERS)
def test_every_answer_is_the_path_to_its_node(answers):
    trie = build_trie(answers)
    for index, answer in enumerate(answers):
        node = trie.nodes[index]
        assert tuple(trie.tokens[step] for step in trie.path(node)) == answer
        assert trie.ends[node] == index
    assert trie.depth == max(map(len, answers))


@given(ANSWERS)
def test_there_is_one_node_for_each_prefix_and_the_inner_ones_are_proper_prefixes(answers):
    trie = build_trie(answers)
    assert len(trie) == len({answer[:i] for answer in answers for i in range(len(answer) + 1)})
    inner = {answer[:i] for answer in answers for i in range(len(answer))}
    assert {tuple(trie.tokens[s] for s in trie.path(node)) for node in trie.inner} == inner


@given(ANSWERS)
def test_nodes_are_numbered_depth_first(answers):
    trie = build_trie(answers)
    for node in range(1, len(trie)):
        assert trie.parents[node] in (node - 1, *trie.path(node - 1), 0)
        assert node in trie.children[trie.parents[node]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(1,), (2, 3), (2,), (2, 3)], "answers 2 and 4 are the same to this model's tokenizer"),
        ([(1,), ()], "answer 2 has no tokens"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(answers, message):
    with pytest.raises(InvalidInput, match=message):
        build_trie(answers)


def test_a_very_long_answer_is_no_deeper_recursion():
    trie = build_trie([tuple(range(5000)), (1,)])
    assert trie.depth == 5000
