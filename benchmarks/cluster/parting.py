"""Where two answers to one prompt part, and how near the model was to writing the other one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from cascade.request import Message
from cloud.engines.draft import Draft
from cloud.engines.transformers import Transformers
from edge.parts import TOKENIZER, FolderText


def where_they_part(
    one: Sequence[int], other: Sequence[int], ends: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """What both begin with, with each token behind it that one of them may have gone on with: its
    own, or any that ends an answer where it ended.

    Arguments:
        one, other: different token ids, neither with the token that ended it.
        ends: token ids that end an answer.
    """
    pairs = zip(one, other, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    for tokens in (one, other):
        for following in tokens[same : same + 1] or ends:
            yield (*tokens[:same], following)


async def gaps(
    folder: Path, pairs: Sequence[tuple[str, tuple[str, str]]], *, context_tokens: int
) -> list[float]:
    """Difference of the model's two largest logits where the answers of each pair part, ≥ 0.

    The prompt and what both begin with are read again, in one pass. Of the tokens that may follow
    it at most one has the largest logit, so that some beginning is not kept as a whole; where that
    is earlier, the pass itself would have gone another way there, and that place counts.

    Arguments:
        folder: the model, as ``Transformers`` reads it.
        pairs: prompts, each with two different answers.
    """
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    ends = FolderText(folder).stop_token_ids()
    engine = Transformers(folder, context_tokens=context_tokens)
    await engine.start()
    found = []
    try:
        for prompt, answers in pairs:
            one, other = (tokenizer.encode(text, add_special_tokens=False).ids for text in answers)
            scores = [
                await engine.score_draft((Message("user", prompt),), Draft(beginning))
                for beginning in where_they_part(one, other, ends)
            ]
            found.append(next(score.gap for score in scores if score.gap is not None))
    finally:
        await engine.close()
    return found
