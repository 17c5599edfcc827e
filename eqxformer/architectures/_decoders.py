"""What all decoder-only architectures are used as: a language model, its body, with labels."""

from collections.abc import Callable, Mapping
from typing import Any

from eqxformer.architectures._encoders import label_names
from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.rules import Rule, Rules, turned, under, unprefixed
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.linear import Linear
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import Encoder, EncoderWithHead
from eqxformer.models.heads import LinearHead, TiedHead
from eqxformer.models.label_heads import LabelHead, Pooling, SequenceHead

# Buffers that older versions wrote beside the weights.
BUFFERS = (
    *("*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias"),
    *("*.attention.bias", "*.attention.masked_bias"),
)
QUESTIONS = turned("head.linear", "qa_outputs")  # where an answer starts and where it ends
# The words of the GPTs, whose tanh GELU is rounded otherwise than the one that others name.
GPT_ACTIVATIONS = {**THEIR_ACTIVATIONS, "gelu_tanh": "gelu_new"}


def decoder(
    model_type: str,
    name: str,
    config: Callable[[Settings], DecoderLM.Config],
    rules: Rules | Callable[[Any], Rules],
    *,
    prefix: str = "model.",
    causal: str = "ForCausalLM",
    score: Rule = turned("head.linear", "score"),
    token_score: Rule = turned("head.linear", "score"),
    questions: str | None = None,
    lacks: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    describe: Callable[[DecoderLM.Config], Mapping[str, Any]] | None = None,
) -> Architecture:
    """An architecture whose classes are made from the config and the rules of one.

    Arguments:
        name: what the names of the classes begin with.
        config, rules: of the language model; names of theirs with the prefix.
        causal: how the name of the language model's class ends.
        score, token_score: where the heads are that score the labels of a text and of a token.
        questions: what stands before the names of the body's tensors where the head says where an
            answer is; None where there is no such class.
        lacks: how the names end of classes that transformers does not have.
        ignored: patterns of tensors without use.
        describe: the settings of a language model's config.

    Example:
        >>> from eqxformer.architectures import decoder_architecture, llama
        >>> mine = decoder_architecture("my_llama", "MyLlama", llama.config, llama.RULES)
        >>> mine.body, next(iter(mine.tasks))
        ('MyLlamaModel', 'MyLlamaForCausalLM')
    """
    of = rules if callable(rules) else lambda _: rules

    def whole(settings: Settings) -> DecoderLM.Config:
        settings.skip("classifier_dropout")  # of one head
        return config(settings)

    def body(settings: Settings) -> Encoder.Config:
        return without_head(whole(settings))

    def sequence(settings: Settings) -> EncoderWithHead.Config:
        labels = SequenceHead.Config(
            settings.labels(), Pooling.Config(take="last"), linear=Linear.Config(bias=False)
        )
        return EncoderWithHead.Config(body(settings), labels)

    def tokens(settings: Settings) -> EncoderWithHead.Config:
        rate = settings.rate("classifier_dropout", settings.rate("hidden_dropout", 0.1))
        return EncoderWithHead.Config(body(settings), LabelHead.Config(settings.labels(), rate))

    def answers(settings: Settings) -> EncoderWithHead.Config:
        return EncoderWithHead.Config(body(settings), LabelHead.Config(labels=2))

    def answer_rules(tree: EncoderWithHead.Config) -> Rules:
        named = under("", (questions or "").removesuffix("."), *bare(tree.encoder))
        return (*under("encoder", "", *named), QUESTIONS)

    def headed(rule: Rule) -> Callable[[EncoderWithHead.Config], Rules]:
        return lambda tree: (*under("encoder", "", *of(tree.encoder)), rule)

    def bare(tree: Encoder.Config) -> Rules:
        return unprefixed(of(tree), prefix)

    ignored = (*BUFFERS, *ignored)
    tasks = {
        causal: Task(whole, of, prefix, ignored),
        "Model": Task(body, bare, prefix, ignored),
        "ForSequenceClassification": Task(sequence, headed(score), prefix, ignored),
        "ForTokenClassification": Task(tokens, headed(token_score), prefix, ignored),
    }
    if questions is not None:
        tasks["ForQuestionAnswering"] = Task(answers, answer_rules, questions, ignored)
    named = {name + ending: task for ending, task in tasks.items() if ending not in lacks}
    described = None if describe is None else _describing(describe)
    body_name = name + "Model"
    return Architecture(
        model_type, named, described, body=body_name if body_name in named else None
    )


def without_head(tree: DecoderLM.Config) -> Encoder.Config:
    """A decoder's body as an encoder that looks back only; it pools the last token."""
    if getattr(tree.head, "project", None) is not None:
        raise ValueError("the projection before a tied head is there only with the head")
    return Encoder.Config(
        vocab=tree.vocab,
        dim=tree.dim,
        blocks=tree.blocks,
        embedding=tree.embedding,
        norm=tree.norm,
        bias=tree.bias,
        pooling=Pooling.Config(take="last"),
        direction="causal",
    )


def with_head(tree: Encoder.Config) -> DecoderLM.Config:
    """The language model that `without_head` takes to this body."""
    return DecoderLM.Config(
        vocab=tree.vocab,
        dim=tree.dim,
        blocks=tree.blocks,
        embedding=tree.embedding,
        norm=tree.norm,
        bias=tree.bias,
    )


def derived(parent: Callable[[Any], Mapping[str, Any]], *left_out: str, **changes: Any) -> Any:
    """A `describe` that says what another does and something more, less what is `left_out`."""
    return lambda tree: {
        **{key: value for key, value in parent(tree).items() if key not in left_out},
        **{key: value(tree) if callable(value) else value for key, value in changes.items()},
    }


def output(
    settings: Settings,
    linear: Linear.Config,
    table: str,
    *,
    tied: bool,
    head: str = "lm_head.weight",
) -> TiedHead.Config | LinearHead.Config:
    """The token table as output, or a projection of its own where the two are not tied.

    Arguments:
        linear: the projection; a tied head has its bias too.
        table: the name of the token table's tensor.
        tied: what an absent `tie_word_embeddings` means.
        head: the name of the projection's tensor.
    """
    if settings.tied(head, table, default=tied):
        return TiedHead.Config(bias=linear.bias)
    return LinearHead.Config(linear)


def projections(reads: Linear.Config, out: Linear.Config | None = None) -> dict[str, Any]:
    """The four projections of an attention, where query, key and value are of one kind."""
    return {"query": reads, "key": reads, "value": reads, "out": reads if out is None else out}


def sizes(tree: DecoderLM.Config, **own: str) -> dict[str, Any]:
    """The settings that nearly all decoders have, in the words of most of them.

    `own` are an architecture's own words for these, as in `Settings.synonyms`.
    """
    block: Any = tree.blocks[0]
    found = {
        "vocab_size": tree.vocab,
        "hidden_size": tree.dim,
        "num_hidden_layers": len(tree.blocks),
        "num_attention_heads": block.attention.heads,
    }
    words = {other: key for key, other in own.items()}
    return {words.get(key, key): value for key, value in found.items()}


def _describing(
    describe: Callable[[DecoderLM.Config], Mapping[str, Any]],
) -> Callable[[Any], Mapping[str, Any]]:
    """The settings of a language model, of its body, or of its body with a head."""

    def found(tree: Any) -> Mapping[str, Any]:
        body, head = getattr(tree, "encoder", tree), getattr(tree, "head", None)
        more = label_names(head)
        more |= {"classifier_dropout": head.dropout} if isinstance(head, LabelHead.Config) else {}
        body = with_head(body) if isinstance(body, Encoder.Config) else body
        more |= {"tie_word_embeddings": isinstance(head, TiedHead.Config)}
        # Those that transformers supposes may lie outside of the vocabulary.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return {**ids, **describe(body), **more}

    return found
