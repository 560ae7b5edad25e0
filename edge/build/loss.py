"""The loss of a gradient graph: next tokens, and answers of closed sets.

A *target* is a token that should follow in one row of logits. Its negative log probability counts
with its own weight. An *answer* is what ``edge.choose`` scores: the sum of its targets' log
probabilities, minus those after the empty prompt (both are rows of ``answer_targets``, +1 and −1),
plus, where it is the beginning of another answer, the log of the probability that none of the
longer ones goes on. Answers of one question form a group, and −log softmax over the group counts
with the weight of the right one.
"""

from __future__ import annotations

from edge.build.nodes import Nodes

# Of one whose continuations take all probability; see edge.reading, which has more digits.
_LEAST_END = 1e-6
_LOWEST = -1e30


def add_loss(nodes: Nodes, logits: str) -> str:
    """Adds the outputs ``loss``, ``target_logprobs`` and ``answer_logprobs``.

    Arguments:
        logits: float32 [R, V].

    Returns:
        d loss / d logits, [R, V]: of a target that counts c, c (softmax − one-hot) in its row.
    """
    column = nodes.integers(1)
    shifted = nodes.apply("Sub", logits, nodes.apply("ReduceMax", logits, column))
    exponentials = nodes.apply("Exp", shifted)
    total = nodes.apply("ReduceSum", exponentials, column)
    row, token = (nodes.apply("Unsqueeze", f"target_{x}", column) for x in ("rows", "ids"))
    cells = nodes.apply("Concat", row, token, axis=1)
    log_total = nodes.apply("Squeeze", nodes.apply("Log", total), column)
    log_total = nodes.apply("Gather", log_total, "target_rows", axis=0)
    nodes.add("Sub", [nodes.apply("GatherND", shifted, cells), log_total], ["target_logprobs"])
    counted = _answer_loss(nodes, "target_logprobs")
    none = nodes.apply("ConstantOfShape", nodes.apply("Shape", "logit_rows"))
    per_row = nodes.apply("ScatterElements", none, "target_rows", counted, axis=0, reduction="add")
    share = nodes.apply("Div", nodes.apply("Unsqueeze", per_row, column), total)
    spread = nodes.apply("Mul", exponentials, share)
    return nodes.apply("ScatterND", spread, cells, nodes.apply("Neg", counted), reduction="add")


def _answer_loss(nodes: Nodes, targets: str) -> str:
    """The outputs ``loss`` and ``answer_logprobs``; returns −d loss / d ``targets``, [P]."""
    column = nodes.integers(1)

    def times(matrix: str, vector: str, *, across: bool = False) -> str:
        """Matrix or its transpose by a vector."""
        wide = nodes.apply("Unsqueeze", vector, column)
        product = nodes.apply("Gemm", matrix, wide, transA=int(across))
        return nodes.apply("Squeeze", product, column)

    likely = nodes.apply("Exp", targets)
    rest = nodes.apply("Sub", nodes.number(1.0), times("end_targets", likely))
    rest = nodes.apply("Max", rest, nodes.number(_LEAST_END))
    scores = nodes.apply(
        "Add",
        times("answer_targets", targets),
        times("answer_ends", nodes.apply("Log", rest)),
    )
    # Log of the sum over the own group: [G, O] with the other groups' answers out of the way.
    outside = nodes.apply("Sub", nodes.number(1.0), "answer_groups")
    grid = nodes.apply(
        "Add",
        nodes.apply("Mul", outside, nodes.number(_LOWEST)),
        nodes.apply("Unsqueeze", scores, nodes.integers(0)),
    )
    top = nodes.apply("ReduceMax", grid, column)
    total = nodes.apply("ReduceSum", nodes.apply("Exp", nodes.apply("Sub", grid, top)), column)
    log_total = nodes.apply("Squeeze", nodes.apply("Add", nodes.apply("Log", total), top), column)
    own_total = times("answer_groups", log_total, across=True)
    nodes.add("Sub", [scores, own_total], ["answer_logprobs"])
    weight = times("answer_groups", times("answer_groups", "answer_weights"), across=True)
    # −d loss / d score: the right answer's weight, minus what its group's goes by softmax.
    chance = nodes.apply("Mul", nodes.apply("Exp", "answer_logprobs"), weight)
    pull = nodes.apply("Sub", "answer_weights", chance)
    ends = nodes.apply("Div", times("answer_ends", pull, across=True), rest)
    through_ends = nodes.apply("Mul", times("end_targets", ends, across=True), likely)
    counted = nodes.apply("Sub", times("answer_targets", pull, across=True), through_ends)
    tokens = nodes.apply("ReduceSum", nodes.apply("Mul", "target_weights", targets), keepdims=0)
    answers = nodes.apply(
        "ReduceSum", nodes.apply("Mul", "answer_weights", "answer_logprobs"), keepdims=0
    )
    nodes.add("Neg", [nodes.apply("Add", tokens, answers)], ["loss"])
    return nodes.apply("Add", "target_weights", counted)
