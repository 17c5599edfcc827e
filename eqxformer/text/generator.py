"""Text in, text out: a model with its tokenizer, its settings and its chat template."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import DTypeLike, PRNGKeyArray

from eqxformer.checkpoints.errors import MissingFile
from eqxformer.generation.beam_search import beam_search
from eqxformer.generation.generate import generate
from eqxformer.generation.settings import GenerationSettings
from eqxformer.generation.stops import StopIds
from eqxformer.generation.stream import stream
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.pretrained.load import load_any, load_tokenizer
from eqxformer.pretrained.locate import home, locate
from eqxformer.text._automaton import strings_given
from eqxformer.text.chat import ChatTemplate
from eqxformer.text.pieces import TextPieces
from eqxformer.text.stop_strings import StopStrings
from eqxformer.text.token_bytes import Spelled, spelled, with_special

Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator:
    """A model that answers text with text: `generator("Once upon a time")`.

    A prompt is a text, which a decoder goes on from and an encoder-decoder reads; or a conversation
    as a list of messages, which the chat template makes into one.

    Arguments:
        model: a `DecoderLM` or an `EncoderDecoder`.
        tokenizer: its `tokenizers.Tokenizer`.
        settings: how tokens are chosen, and where a text ends.
        template: how a conversation becomes text, for models that were made for them.

    Example:
        >>> import eqxformer as ef, jax
        >>> from tokenizers import Tokenizer, decoders, models
        >>> tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
        >>> tokenizer.decoder = decoders.Fuse()
        >>> config = ef.families.gpt(vocab=3, dim=16, layers=1, heads=2, context=16)
        >>> generator = ef.TextGenerator(config.build(key=jax.random.key(0)), tokenizer)
        >>> len(generator("abba", max_new_tokens=5))
        5
    """

    model: Any
    tokenizer: Any
    settings: GenerationSettings = dataclasses.field(default_factory=GenerationSettings)
    template: ChatTemplate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, (DecoderLM, EncoderDecoder)):
            raise ValueError(
                f"A model that makes text is a DecoderLM or an EncoderDecoder; this is "
                f"{type(self.model).__name__}."
            )

    @staticmethod
    def read(
        source: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        revision: str | None = None,
    ) -> "TextGenerator":
        """All there is in a checkpoint: model, tokenizer, settings, and a chat template if any.

        Arguments:
            source: a directory in the format of transformers or our own, such as that of a run or
                its `best`, which has the tokenizer of the run, or an id of the Hugging Face Hub
                (with the extra `hub`).
            dtype: the type of the weights, as of `from_pretrained`.
            revision: a branch, tag or commit on the Hub.

        Raises what `from_pretrained`, `load_tokenizer` and `GenerationSettings.read` raise.
        """
        folder = locate(source, revision=revision)
        beside = home(folder)
        tokenizer = load_tokenizer(beside)
        # What a tokenizer was saved with is for batches; here, it would cut texts in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        try:
            template = ChatTemplate.read(beside)
        except MissingFile:
            template = None
        settings = GenerationSettings.read(beside)
        return TextGenerator(load_any(folder, dtype), tokenizer, settings, template)

    def __call__(
        self,
        prompt: str | Messages | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        key: PRNGKeyArray | None = None,
    ) -> Any:
        """The text that follows a prompt, or a list of those that follow several.

        Arguments:
            prompt: a text, a conversation, or a list of texts.
            max_new_tokens: how many tokens to make at the most, where the settings do not say it.
            stop: strings before which a text ends, beside what the settings say.
            key: for settings that draw; of no influence on others.

        Raises `ValueError` for an empty prompt, for settings that draw without a key, and whatever
        `generate` raises.
        """
        several = not isinstance(prompt, str) and all(isinstance(each, str) for each in prompt)
        if several and not len(prompt):
            return []
        rows = [self.encode(each) for each in (prompt if several else [prompt])]  # pyright: ignore[reportArgumentType]
        options, strings = self._options(rows, max_new_tokens, stop, key)
        if self.settings.beams > 1:
            made = [best[0] for best in beam_search(self.model, rows, **options).tokens]
        else:
            made = generate(self.model, rows, key=key, **options)
        texts = []
        for row, tokens in zip(rows, made, strict=True):
            pieces = self._pieces(row, strings)
            texts.append(pieces.feed(tokens) + pieces.finish())
        return texts if several else texts[0]

    def stream(
        self,
        prompt: str | Messages,
        *,
        max_new_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        key: PRNGKeyArray | None = None,
        every: int = 4,
    ) -> Iterator[str]:
        """The text that follows a prompt, in pieces as it is made, that never split a character.

        Arguments as in a call; `every` is how many tokens are made between two pieces. Settings
        with beams give all of the text in one piece, since only the end tells which beam is best.
        """
        if self.settings.beams > 1:
            return iter([self(prompt, max_new_tokens=max_new_tokens, stop=stop, key=key)])
        row = self.encode(prompt)
        options, strings = self._options([row], max_new_tokens, stop, key)
        made = stream(self.model, [row], key=key, every=every, **options)
        pieces = self._pieces(row, strings)

        def texts() -> Iterator[str]:
            for (tokens,) in made:
                if text := pieces.feed(tokens):
                    yield text
            if text := pieces.finish():
                yield text

        return texts()

    def encode(self, prompt: str | Messages) -> list[int]:
        """The ids of a prompt, with the special tokens that belong to it.

        Raises `ValueError` for an empty prompt, and for a conversation without a chat template.
        """
        if isinstance(prompt, str):
            ids = self._read_text(prompt)
        elif self.template is None:
            raise ValueError(
                "This model has no chat template, so it was not made for conversations; give a text"
                ", or a `template`."
            )
        else:
            ids = self.template.encode(self.tokenizer, prompt)
        if not ids:
            raise ValueError("The prompt must have at least one token; got an empty one.")
        return ids

    def _read_text(self, prompt: str) -> list[int]:
        """The ids of a text. Raises `ValueError` where a tokenizer has none for some of it."""
        try:
            return self.tokenizer.encode(prompt).ids
        except Exception as error:  # tokenizers raises plain Exceptions
            known = self.tokenizer.token_to_id
            strange = [repr(each) for each in sorted(set(prompt)) if known(each) is None]
            listed = ", ".join(strange[:8]) + (", ..." if len(strange) > 8 else "")
            raise ValueError(
                f"The tokenizer cannot read this prompt: {error}. "
                f"Characters in it that are no tokens: {listed or 'none'}."
            ) from None

    def _pieces(self, row: list[int], strings: tuple[str, ...]) -> TextPieces:
        begin = () if isinstance(self.model, EncoderDecoder) else row
        return TextPieces(self.tokenizer, stop=strings, prompt=begin)

    def _options(
        self, rows: list[list[int]], new: int | None, stop: str | Iterable[str], key: Any
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What `generate` or `beam_search` is told, and the strings that a text ends before."""
        strings = (*self.settings.stop_strings, *strings_given(stop, "stop"))
        settings = dataclasses.replace(self.settings, stop_strings=(), texts=1)
        prompt = None if isinstance(self.model, EncoderDecoder) else max(map(len, rows))
        make = settings.beam_options if settings.beams > 1 else settings.options
        options = make(prompt=prompt, max_new_tokens=new)
        if "max_new_tokens" not in options:
            raise ValueError(
                "The settings do not say how long a text may be; `max_new_tokens` must."
            )
        if settings.samples and key is None:
            raise ValueError(
                "The settings draw at random (`do_sample`) and need a `key`; got none. Give `key="
                "jax.random.key(0)`, or take the likeliest tokens: a `TextGenerator` with "
                "`settings=dataclasses.replace(generator.settings, samples=False)`."
            )
        if strings:
            parts = with_special(self._spelled, self.tokenizer, strings)
            options["stop"] = StopIds(settings.stop) | StopStrings(strings, parts)
        return options, strings

    @functools.cached_property
    def _spelled(self) -> Spelled:
        # As `_pieces` has it: a target is a whole text, and what follows a prompt is not.
        whole = isinstance(self.model, EncoderDecoder)
        return spelled(self.tokenizer, "beginning" if whole else "inside")
