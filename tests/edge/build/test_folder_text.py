"""What a bundle takes over from a folder's tokenizer, template and generation settings."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from cascade.errors import InvalidInput
from cascade.request import Message
from edge.build.folder_text import PLAIN_TEMPLATE, FolderText
from edge.bundle import CHAT_TEMPLATE, TOKENIZER
from edge.text import TextCodec

from .folders import END, TEMPLATE, change_json, save_text
from .tiny import TOKENS, VOCABULARY


@pytest.fixture
def folder(tmp_path):
    save_text(tmp_path)
    return tmp_path


def test_the_template_of_the_tokenizer_configuration_is_taken(folder):
    assert FolderText(folder).chat_template() == TEMPLATE


def test_of_several_templates_the_default_is_taken(folder):
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    change_json(folder / "tokenizer_config.json", chat_template=several)
    assert FolderText(folder).chat_template() == "y"


def test_a_template_in_a_file_of_its_own_comes_first(folder):
    (folder / CHAT_TEMPLATE).write_text("z", encoding="utf-8")
    assert FolderText(folder).chat_template() == "z"


def test_without_a_template_the_way_out_is_named(folder):
    change_json(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(InvalidInput, match=r"chat_template: .* --chat-template FILE"):
        FolderText(folder).chat_template()


class Files:
    """As much of a bundle as ``TextCodec`` looks at."""

    def __init__(self, folder):
        self.file = folder.joinpath


def rendered(folder, template):
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    codec = TextCodec(Files(folder))
    return codec.encode((Message("user", "a"), Message("user", "b")))


@pytest.mark.parametrize("stated", ["<|im_start|>", {"content": "<|im_start|>", "lstrip": False}])
def test_special_tokens_that_a_template_names_are_written_into_it(folder, stated):
    """A device renders messages and nothing else."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    change_json(folder / "tokenizer_config.json", bos_token=stated, chat_template=template)
    a, b = TOKENS.index("a"), TOKENS.index("b")
    assert rendered(folder, FolderText(folder).chat_template()) == [1, a, END, b, END]


def test_the_plain_template_gives_messages_a_line_each(folder):
    a, b, line = TOKENS.index("a"), TOKENS.index("b"), TOKENS.index("Ċ")
    assert rendered(folder, PLAIN_TEMPLATE) == [a, line, b, line]


def test_truncation_and_padding_are_left_out(folder):
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / TOKENIZER))
    kept = Tokenizer.from_str(FolderText(folder).tokenizer())
    assert len(kept.encode("a b c d").ids) == 7


def write(folder, name, **fields):
    (folder / name).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "stops"),
    [
        ({"eos_token_id": [5, 3]}, {"eos_token_id": 9}, None, (3, 5)),
        ({"eos_token_id": 5}, {}, "<|im_end|>", (2, 5)),
        ({}, {"eos_token_id": 9}, None, (9,)),
        (None, {"eos_token_id": None}, "<|endoftext|>", (0,)),
        (None, {}, {"content": "<|im_end|>"}, (2,)),
    ],
)
def test_stop_tokens_are_all_that_the_folder_names(folder, generation, config, tokenizer, stops):
    write(folder, "config.json", **config)
    if generation is not None:
        write(folder, "generation_config.json", **generation)
    change_json(folder / "tokenizer_config.json", eos_token=tokenizer)
    assert FolderText(folder).stop_token_ids() == stops


def test_a_folder_that_names_no_stop_token_is_refused(folder):
    write(folder, "config.json")
    change_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InvalidInput, match="says which token ends an answer"):
        FolderText(folder).stop_token_ids()


def test_ids_beyond_the_embedding_are_refused(folder):
    text = FolderText(folder)
    text.check_ids(VOCABULARY)
    with pytest.raises(InvalidInput, match=f"has the id {VOCABULARY - 1}"):
        text.check_ids(VOCABULARY - 1)


def test_a_damaged_tokenizer_is_named(folder):
    (folder / TOKENIZER).write_text("{}")
    with pytest.raises(InvalidInput, match=r"tokenizer.json cannot be read"):
        FolderText(folder)


def test_a_configuration_that_is_no_object_is_named(folder):
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(InvalidInput, match=r"tokenizer_config.json is not a JSON object"):
        FolderText(folder)
