"""Tokenizer, chat template and stop tokens of a Hugging Face folder, ready for a bundle.

A bundle's template is given messages and nothing else, so special tokens that it refers to are
written into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from cascade.errors import InvalidInput
from edge.build.folder_config import CONFIG, read_json
from edge.bundle import CHAT_TEMPLATE, TOKENIZER

_TOKENIZER_CONFIG, _GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""Messages one after the other, a line each: for models that were never taught to chat."""


class FolderText:
    """What ``folder`` says about text.

    Raises:
        InvalidInput: ``tokenizer.json`` is missing or unusable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = _read_tokenizer(folder / TOKENIZER)
        self._config = _optional(folder / _TOKENIZER_CONFIG)

    def check_ids(self, vocabulary: int) -> None:
        """Raise ``InvalidInput`` where a token is beyond the model's ``vocabulary`` ids."""
        tokens = self._tokenizer.get_vocab(with_added_tokens=True).values()
        for file, ids in ((TOKENIZER, tokens), (_GENERATION_CONFIG, self.stop_token_ids())):
            largest = max(ids, default=0)
            if largest >= vocabulary:
                raise InvalidInput(
                    file, f"has the id {largest}; {self._folder.name} knows {vocabulary} ids"
                )

    def tokenizer(self) -> str:
        """``tokenizer.json`` without truncation and padding, which would change prompts."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return str(self._tokenizer.to_str(pretty=False))

    def chat_template(self) -> str:
        """The Jinja template, with the special tokens that it names set at its start.

        Raises:
            InvalidInput: there is none.
        """
        file = self._folder / CHAT_TEMPLATE
        template = file.read_text(encoding="utf-8") if file.is_file() else self._configured()
        if not template:
            raise InvalidInput(
                "chat_template",
                f"{self._folder.name} has none; give one with --chat-template FILE, or, for a "
                "model that completes text, --chat-template plain",
            )
        named = {name: self._token(name) for name in _NAMED_TOKENS if name in template}
        return (
            "".join(
                f"{{% set {name} = {json.dumps(token, ensure_ascii=False)} %}}"
                for name, token in named.items()
                if token is not None
            )
            + template
        )

    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, by all that the folder says.

        Raises:
            InvalidInput: it says nothing.
        """
        ids = {*self._stated(_GENERATION_CONFIG)} or {*self._stated(CONFIG)}
        end = self._token("eos_token")
        known = None if end is None else self._tokenizer.token_to_id(end)
        if known is not None:
            ids.add(known)
        if not ids:
            raise InvalidInput(
                "eos_token_id",
                f"neither {_GENERATION_CONFIG}, {CONFIG} nor {_TOKENIZER_CONFIG} of "
                f"{self._folder.name} says which token ends an answer",
            )
        return tuple(sorted(ids))

    def _configured(self) -> str | None:
        """From ``tokenizer_config.json``: one template, or several by name."""
        stated = self._config.get("chat_template")
        if isinstance(stated, list):
            named = [item for item in stated if isinstance(item, dict)]
            stated = {item.get("name"): item.get("template") for item in named}.get("default")
        return stated if isinstance(stated, str) else None

    def _token(self, name: str) -> str | None:
        """A special token's text; ``tokenizer_config.json`` states it plainly or as an object."""
        stated = self._config.get(name)
        if isinstance(stated, dict):
            stated = stated.get("content")
        return stated if isinstance(stated, str) else None

    def _stated(self, file: str) -> Iterator[int]:
        stated = _optional(self._folder / file).get("eos_token_id")
        for token in stated if isinstance(stated, list) else [stated]:
            if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
                yield token


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise InvalidInput(
            "folder",
            f"{path.parent} has no {path.name}; make one with "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as problem:  # tokenizers raises bare Exception
        raise InvalidInput("folder", f"{path} cannot be read ({problem})") from None


def _optional(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}
