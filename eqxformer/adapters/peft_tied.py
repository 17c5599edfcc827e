"""A token table that a model uses twice, and what PEFT makes of it where it is saved whole.

PEFT replaces the one module that it is told of. What transformers ties to that module keeps the old
table, while here the two are one. With `ensure_weight_tying` PEFT replaces the head as well, which
it does for tables called `embed_tokens` and heads without a bias alone; it then stores the table
twice, the second time under the name of the head.
"""

import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.rules import Binding, bind
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import EncoderWithHead
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.encoder_decoder_with_head import EncoderDecoderWithHead
from eqxformer.models.heads import MaskedLMHead, TiedHead
from eqxformer.pretrained.express import Expression

_REPLACED_TWICE = "embed_tokens"  # the last word of what PEFT can keep tied


class TiedTable(NamedTuple):
    """A token table that is the head as well, or that both sides share.

    Arguments:
        name: of its tensor.
        copy: the tensor with which PEFT stores it twice; None where it replaces one use alone.
    """

    name: str
    copy: str | None


def tied_table(config: Any, written: Expression, bindings: Iterable[Binding]) -> TiedTable | None:
    """The token table that a model with this config uses twice; None if there is none.

    Arguments:
        written: the config in the words of its architecture.
        bindings: where the model's arrays are stored.
    """
    found = _used_twice(config)
    if found is None:
        return None
    path, head = found
    (name,) = next(each.theirs for each in bindings if f"{path}.weight" in each.ours)
    if head is not None and not name.startswith(written.task.prefix):
        return None  # a class without a head, of which ours alone makes one of the table
    copy = None
    if head is not None and name.split(".")[-2] == _REPLACED_TWICE:
        with contextlib.suppress(CheckpointError):  # a head that is always tied has no rule
            (alone,) = bind(written.task.rules(config), {f"{head}.linear.weight": (1, 1)})
            (copy,) = alone.theirs
    return TiedTable(name, copy)


def _used_twice(config: Any) -> tuple[str, str | None] | None:
    """The path of a token table that is used twice, and of a tied head that PEFT can replace."""
    match config:
        case EncoderDecoderWithHead.Config(body=EncoderDecoder.Config(tokens="shared")):
            return "body.encoder.embedding.tokens", None
        case EncoderDecoder.Config(tokens="shared"):
            return "encoder.embedding.tokens", None
        case EncoderDecoder.Config(decoder=DecoderLM.Config(head=TiedHead.Config(bias=bias))):
            return "decoder.embedding.tokens", None if bias else "decoder.head"
        case DecoderLM.Config(head=TiedHead.Config(bias=bias)):
            return "embedding.tokens", None if bias else "head"
        case EncoderWithHead.Config(
            head=TiedHead.Config() | MaskedLMHead.Config(output=TiedHead.Config())
        ):
            return "encoder.embedding.tokens", None
    return None
