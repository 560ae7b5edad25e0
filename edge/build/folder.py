"""A Hugging Face folder of a supported family, read into one ``Source``."""

from __future__ import annotations

from pathlib import Path

from cascade.errors import InvalidInput
from edge.build.checkpoint import Source
from edge.build.folder_checkpoint import FolderCheckpoint
from edge.build.folder_config import read_model
from edge.build.folder_text import FolderText
from edge.build.quantise import BLOCK, Quantisation, for_floats


def folder_source(
    folder: Path, quantisation: Quantisation = "int8", template: str | None = None
) -> Source:
    """Read ``folder``.

    Arguments:
        template: chat template to use instead of the folder's.

    Raises:
        InvalidInput: a file is missing, damaged, or says what is not supported.
    """
    for_floats(quantisation)
    if not folder.is_dir():
        raise InvalidInput("folder", f"no folder {folder}")
    model = read_model(folder)
    text = FolderText(folder)
    text.check_ids(model.decoder.vocabulary)
    return Source(
        decoder=model.decoder,
        weights=FolderCheckpoint(folder, tied=model.tied, quantisation=quantisation),
        quantisation=describe(quantisation),
        tokenizer=text.tokenizer(),
        chat_template=text.chat_template() if template is None else template,
        stop_token_ids=text.stop_token_ids(),
    )


def describe(quantisation: Quantisation) -> str:
    """For the manifest, e.g. ``"int8 in blocks of 32"``."""
    return quantisation if quantisation == "fp32" else f"{quantisation} in blocks of {BLOCK}"
