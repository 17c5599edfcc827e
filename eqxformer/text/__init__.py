"""Between text and token ids: what generation needs to know of a tokenizer."""

from eqxformer.text.chat import ChatTemplate
from eqxformer.text.generator import TextGenerator
from eqxformer.text.patterns import JsonSchema, Pattern
from eqxformer.text.pieces import TextPieces
from eqxformer.text.stop_strings import StopStrings, text_before
from eqxformer.text.token_bytes import token_bytes

__all__ = [
    "ChatTemplate",
    "JsonSchema",
    "Pattern",
    "StopStrings",
    "TextGenerator",
    "TextPieces",
    "text_before",
    "token_bytes",
]
