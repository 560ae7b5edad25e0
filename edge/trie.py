"""The trie of a closed set of answers: which tokens may follow which.

Only the shape lives here. Probabilities on it are ``edge.reading``; finding the best answer without
reading all of it is ``edge.search``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade.errors import InvalidInput

ROOT = 0


@dataclass(frozen=True, slots=True)
class Trie:
    """A prefix tree of token sequences, one entry a node in the first four fields.

    Nodes are numbered depth first: a parent comes before its children, and a node's descendants
    follow it directly. Node 0 is the root, the empty prefix.

    Arguments:
        parents: −1 for the root.
        tokens: the token that leads from the parent to the node; −1 for the root.
        children: empty for a leaf.
        ends: index of the answer that ends at the node, or −1.
        nodes: the node at which each answer ends, shape ``[options]``.
        inner: the nodes with children, in order: those after which a distribution is needed.
        depth: tokens of the longest answer.
    """

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    nodes: tuple[int, ...]
    inner: tuple[int, ...]
    depth: int

    def __len__(self) -> int:
        return len(self.parents)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to ``node``; empty for the root."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))


def build_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """The trie of token sequences, shape ``[options][tokens]``, each with at least one token.

    Raises:
        InvalidInput: two answers have the same tokens, or one has none.
    """
    parents, tokens, ends = [-1], [-1], [-1]
    children: list[list[int]] = [[]]
    nodes = [ROOT] * len(sequences)
    # Nodes and tokens of the sequence before.
    path: list[int] = [ROOT]
    before: tuple[int, ...] = ()
    # In lexicographic order new nodes come depth first, and a prefix before what it begins.
    for index in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = tuple(sequences[index])
        if not sequence:
            raise InvalidInput("options", f"answer {index + 1} has no tokens in this vocabulary")
        shared = common_prefix(before, sequence)
        del path[shared + 1 :]
        if shared == len(sequence):
            raise InvalidInput(
                "options",
                f"answers {ends[path[-1]] + 1} and {index + 1} are the same to this model's "
                "tokenizer",
            )
        for token in sequence[shared:]:
            node = len(parents)
            children[path[-1]].append(node)
            parents.append(path[-1])
            tokens.append(token)
            ends.append(-1)
            children.append([])
            path.append(node)
        ends[path[-1]] = index
        nodes[index] = path[-1]
        before = sequence
    return Trie(
        parents=tuple(parents),
        tokens=tuple(tokens),
        children=tuple(map(tuple, children)),
        ends=tuple(ends),
        nodes=tuple(nodes),
        inner=tuple(node for node, below in enumerate(children) if below),
        depth=max(map(len, sequences)),
    )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)
