"""``cascade bundle build``: each source, and each mistake in one line."""

from __future__ import annotations

import json

import pytest

from cascade import home
from cascade.cli import main
from cascade.signing import TrustStore
from edge.bundle import Bundle

from .folders import save_model
from .tiny import Tiny

pytestmark = pytest.mark.usefixtures("empty_home")


@pytest.fixture
def gguf(tmp_path):
    return Tiny().write(tmp_path / "Tiny Model.Q4_1.gguf")


@pytest.fixture
def llama(tmp_path):
    save_model(tmp_path / "My-Llama", "llama")
    return tmp_path / "My-Llama"


@pytest.fixture
def build(capsys):
    """Runs the command; gives exit code, standard output and standard error."""

    def build(*words):
        code = main(["bundle", "build", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return build


def opened(name):
    return Bundle.open(home.bundles_dir() / name, TrustStore(home.trust_dir())).manifest


def test_a_gguf_file_keeps_its_blocks(build, gguf):
    code, out, _ = build("--from", gguf, "--licence", "MIT", "--commercial-use")
    assert code == 0
    assert "signed and pinned" in out
    manifest = opened("tiny-model.q4_1")
    assert (manifest.quantisation, manifest.graph) == ("lossless Q4_1", "fused")
    assert (manifest.licence, manifest.commercial_use) == ("MIT", True)
    assert manifest.base_model == "Tiny Model.Q4_1.gguf"


def test_inspect_names_the_linears_that_adapters_may_change(build, llama, capsys):
    build("--from", llama, "--name", "it")
    assert main(["bundle", "inspect", "it"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "adapters for" in line]
    assert len(shown) == 7
    assert "adapters for       layers.0–1.q_proj, 64 to 64" in shown
    assert "adapters for       layers.0–1.down_proj, 96 to 64" in shown


def test_a_folder_becomes_int8(build, llama):
    code, out, _ = build("--from", llama, "--json", "--context", "48", "--base-model", "A Llama")
    told = json.loads(out)
    assert code == 0
    assert told["name"] == "my-llama-int8"
    assert told["quantisation"] == "int8 in blocks of 32"
    assert (told["licence"], told["commercial_use"]) == ("unknown", False)
    assert (told["context_tokens"], told["base_model"]) == (48, "A Llama")
    assert set(told["files"]) >= {"decode.onnx", "tokenizer.json"}


def test_any_other_folder_is_exported_and_says_so(build, tmp_path):
    save_model(tmp_path / "neox", "gpt_neox")
    code, _, said = build("--from", tmp_path / "neox", "--quantise", "int4", "--name", "other")
    assert code == 0
    assert "the slower path" in said
    assert opened("other").graph == "exported"
    assert "gpt_neox.layers.0.attention.dense" in {
        slot.name for slot in opened("other").adapter_slots
    }
    assert opened("other").quantisation == "int4 in blocks of 32"


def test_a_template_can_be_given(build, llama, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    for given, name in ((template, "filed"), ("plain", "plain")):
        assert build("--from", llama, "--chat-template", given, "--name", name)[0] == 0
    written = (home.bundles_dir() / "filed" / "chat_template.jinja").read_text()
    assert written == "{{ messages[0].content }}"
    assert "\n" in (home.bundles_dir() / "plain" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "/nowhere"), "--from: there is no file or folder /nowhere"),
        (("--from", "{llama}", "--name", "Has Spaces"), "--name: 'Has Spaces' must be lower-case"),
        (("--from", "{llama}", "--name", "../up"), "--name"),
        (("--from", "{llama}", "--quantise", "lossless"), "quantise: lossless is for GGUF"),
        (("--from", "{llama}", "--chat-template", "/no.jinja"), "--chat-template: /no.jinja"),
        (("--from", "{llama}", "--context", "65"), "context: 65 is not between 1 and"),
        (("--from", "{llama}/config.json"), "config.json is not a GGUF file"),
        (("--from", "{llama}/.."), "has no config.json"),
        (("--from", "{gguf}", "--quantise", "int8"), "quantise: int8: a GGUF file is quantised"),
        (("--from", "{gguf}", "--export"), "--export: is for Hugging Face folders"),
        (("--export",), "--export: is for Hugging Face folders"),
        (("--licence", "MIT"), "--licence: goes with --from"),
        (("--model", "vader-sentences"), "is no GGUF model"),
    ],
)
def test_a_mistake_is_one_line(build, llama, gguf, words, message):
    code, out, said = build(*(word.format(llama=llama, gguf=gguf) for word in words))
    assert code == 2
    assert out == ""
    assert message in said
    assert len(said.splitlines()) == 1
    assert not home.bundles_dir().exists() or not list(home.bundles_dir().iterdir())


def test_a_bundle_that_is_there_is_kept(build, gguf):
    assert build("--from", gguf)[0] == 0
    code, _, said = build("--from", gguf)
    assert code == 2
    assert "--force" in said
    assert build("--from", gguf, "--force")[0] == 0
