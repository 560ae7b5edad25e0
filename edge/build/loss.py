"""The loss of a gradient graph: next tokens, and answers of closed sets.

A *target* is a token that should follow in one row of activations. Its negative log probability
counts with its own weight. An *answer* is what ``edge.choose`` scores: the sum of its targets' log
probabilities, minus those after the empty prompt (both are rows of ``answer_targets``, +1 and −1),
plus, where it is the beginning of another answer, the log of the probability that none of the
longer ones goes on. Answers of one question form a group, and −log softmax over the group counts
with the weight of the right one.

The head is the largest matrix by far, so it is made floats of once, in pieces, and no row of logits
is ever whole. Of every piece c of the vocabulary, with rows h of activations,

    z = h W_c^T,  m_c = max z,  e = exp(z − m_c),  s_c = Σ e,  u_c = e W_c

and over the pieces log Σ exp z = m + log Σ s_c exp(m_c − m), while the mean of the head's rows by
softmax, which is d (log Σ exp z) / d h, is Σ u_c exp(m_c − m) / Σ s_c exp(m_c − m).
"""

from __future__ import annotations

from edge.build.frozen import Frozen, FrozenMatrices
from edge.build.nodes import Nodes

# Of one whose continuations take all probability; see edge.reading, which has more digits.
_LEAST_END = 1e-6
_LOWEST = -1e30


def add_loss(nodes: Nodes, frozen: FrozenMatrices, x: str, head: Frozen) -> str:
    """Adds the outputs ``loss``, ``target_logprobs`` and ``answer_logprobs``.

    Arguments:
        x: float32 [R, hidden], normalised.

    Returns:
        d loss / d x, [R, hidden].
    """
    column = nodes.integers(1)
    log_total, mean = _over_vocabulary(nodes, frozen, x, head)
    own = _target_logprobs(nodes, frozen, x, head, log_total)
    counted = nodes.apply("Unsqueeze", _answer_loss(nodes, "target_logprobs"), column)
    # Of a target that counts c, c (mean − own row).
    towards = nodes.apply("Gather", mean, "target_rows", axis=0)
    towards = nodes.apply("Mul", nodes.apply("Sub", towards, own), counted)
    none = nodes.apply("ConstantOfShape", nodes.apply("Shape", x))
    rows = nodes.apply("Unsqueeze", "target_rows", column)
    return nodes.apply("ScatterND", none, rows, towards, reduction="add")


def add_scores(nodes: Nodes, frozen: FrozenMatrices, x: str, head: Frozen) -> None:
    """Adds the output ``answer_logprobs`` alone; see ``add_loss``."""
    log_total, _ = _over_vocabulary(nodes, frozen, x, head, mean=False)
    _target_logprobs(nodes, frozen, x, head, log_total)
    _answer_logprobs(nodes, "target_logprobs")


def _target_logprobs(
    nodes: Nodes, frozen: FrozenMatrices, x: str, head: Frozen, log_total: str
) -> str:
    """The output ``target_logprobs``; returns the head's rows of the targets, [P, hidden]."""
    own = frozen.rows(head, "target_ids")
    behind = nodes.apply("Gather", x, "target_rows", axis=0)
    logits = nodes.apply(
        "ReduceSum", nodes.apply("Mul", own, behind), nodes.integers(1), keepdims=0
    )
    totals = nodes.apply("Gather", log_total, "target_rows", axis=0)
    nodes.add("Sub", [logits, totals], ["target_logprobs"])
    return own


def _over_vocabulary(
    nodes: Nodes, frozen: FrozenMatrices, x: str, head: Frozen, *, mean: bool = True
) -> tuple[str, str]:
    """log Σ exp of the logits [R], and the mean of the head's rows by softmax [R, hidden], which
    takes as long; "" where it is not wanted."""
    column = nodes.integers(1)
    tops: list[str] = []
    sums: list[str] = []
    means: list[str] = []
    for piece in frozen.pieces(head, after=x, in_turn=means if mean else sums):
        z = frozen.times(x, piece)
        tops.append(nodes.apply("ReduceMax", z, column))
        e = nodes.apply("Exp", nodes.apply("Sub", z, tops[-1]))
        sums.append(nodes.apply("ReduceSum", e, column))
        if mean:
            means.append(frozen.back(e, piece))
    top = tops[0] if len(tops) == 1 else nodes.apply("Max", *tops)
    shares = [nodes.apply("Exp", nodes.apply("Sub", own_top, top)) for own_top in tops]

    def together(parts: list[str]) -> str:
        total = ""
        for part, share in zip(parts, shares, strict=True):
            scaled = nodes.apply("Mul", part, share)
            total = nodes.apply("Add", total, scaled) if total else scaled
        return total

    total = together(sums)
    log_total = nodes.apply("Squeeze", nodes.apply("Add", nodes.apply("Log", total), top), column)
    return log_total, nodes.apply("Div", together(means), total) if mean else ""


def _times(nodes: Nodes, matrix: str, vector: str, *, across: bool = False) -> str:
    """Matrix or its transpose by a vector."""
    column = nodes.integers(1)
    product = nodes.apply(
        "Gemm", matrix, nodes.apply("Unsqueeze", vector, column), transA=int(across)
    )
    return nodes.apply("Squeeze", product, column)


def _answer_logprobs(nodes: Nodes, targets: str) -> tuple[str, str]:
    """The output ``answer_logprobs``; returns the targets' probabilities [P], and what is left for
    the end of each answer that is the beginning of another [E]."""
    column = nodes.integers(1)
    likely = nodes.apply("Exp", targets)
    rest = nodes.apply("Sub", nodes.number(1.0), _times(nodes, "end_targets", likely))
    rest = nodes.apply("Max", rest, nodes.number(_LEAST_END))
    scores = nodes.apply(
        "Add",
        _times(nodes, "answer_targets", targets),
        _times(nodes, "answer_ends", nodes.apply("Log", rest)),
    )
    # Log of the sum over the own group: [G, O] with the other groups' answers out of the way.
    outside = nodes.apply("Sub", nodes.number(1.0), "answer_groups")
    outside = nodes.apply("Mul", outside, nodes.number(_LOWEST))
    grid = nodes.apply("Add", outside, nodes.apply("Unsqueeze", scores, nodes.integers(0)))
    top = nodes.apply("ReduceMax", grid, column)
    total = nodes.apply("ReduceSum", nodes.apply("Exp", nodes.apply("Sub", grid, top)), column)
    log_total = nodes.apply("Squeeze", nodes.apply("Add", nodes.apply("Log", total), top), column)
    own_total = _times(nodes, "answer_groups", log_total, across=True)
    nodes.add("Sub", [scores, own_total], ["answer_logprobs"])
    return likely, rest


def _answer_loss(nodes: Nodes, targets: str) -> str:
    """The outputs ``loss`` and ``answer_logprobs``; returns −d loss / d ``targets``, [P]."""

    likely, rest = _answer_logprobs(nodes, targets)
    weight = _times(
        nodes, "answer_groups", _times(nodes, "answer_groups", "answer_weights"), across=True
    )
    # −d loss / d score: the right answer's weight, minus what its group's goes by softmax.
    chance = nodes.apply("Mul", nodes.apply("Exp", "answer_logprobs"), weight)
    pull = nodes.apply("Sub", "answer_weights", chance)
    ends = nodes.apply("Div", _times(nodes, "answer_ends", pull, across=True), rest)
    through_ends = nodes.apply("Mul", _times(nodes, "end_targets", ends, across=True), likely)
    counted = nodes.apply("Sub", _times(nodes, "answer_targets", pull, across=True), through_ends)
    tokens = nodes.apply("ReduceSum", nodes.apply("Mul", "target_weights", targets), keepdims=0)
    answers = nodes.apply(
        "ReduceSum", nodes.apply("Mul", "answer_weights", "answer_logprobs"), keepdims=0
    )
    nodes.add("Neg", [nodes.apply("Add", tokens, answers)], ["loss"])
    return nodes.apply("Add", "target_weights", counted)
