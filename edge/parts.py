"""What an engine over another runtime is made of, so that the cluster decodes as devices do.

With a decoder that turns token ids into rows of logits, these give free answers, closed sets and
grammars exactly as ``OnnxModel`` has them: the same order of filters, the same scores.
"""

from edge.build.folder_text import PLAIN_TEMPLATE, FolderText
from edge.bundle import CHAT_TEMPLATE, TOKENIZER
from edge.choose import Chooser
from edge.decoder import Row, TreeNode
from edge.generate import Decodes, Ending, OnText, Step, generate
from edge.sampling import Sampler
from edge.structured import Grammars
from edge.text import TextCodec

__all__ = [
    "CHAT_TEMPLATE",
    "PLAIN_TEMPLATE",
    "TOKENIZER",
    "Chooser",
    "Decodes",
    "Ending",
    "FolderText",
    "Grammars",
    "OnText",
    "Row",
    "Sampler",
    "Step",
    "TextCodec",
    "TreeNode",
    "generate",
]
