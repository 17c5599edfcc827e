"""How a checkpoint wants texts to be made: its `generation_config.json` as values of ours."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.checkpoints.settings import Settings, nearest
from eqxformer.checkpoints.tensor_files import read_json
from eqxformer.generation._settings_chain import as_ids, processors_of, warpers_of
from eqxformer.generation._settings_keys import INERT, NEUTRAL, READ
from eqxformer.generation.processors import Chain, Processor
from eqxformer.generation.samplers import Greedy, Sample, Sampler
from eqxformer.generation.warpers import Normalize
from eqxformer.pretrained.locate import locate

_FILE, _LIMIT = "generation_config.json", 10**7


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GenerationSettings:
    """What a checkpoint says about generation; `options()` says it to `generate`.

    Every key of the file is accounted for: it is one of these values, makes no difference to which
    text is made, or is refused. What is absent, or null, is as transformers has it: a sampler takes
    the 50 likeliest tokens where `top_k` does not say otherwise. For another value, use
    `dataclasses.replace(settings, beams=1)`.

    Arguments:
        stop: the ids that end a row.
        start: the first token of a target, of an encoder-decoder.
        pad: the id that fills up rows.
        max_new_tokens: how many tokens may be made.
        max_length: how many tokens a row may have, those of its prompt or the start included; where
            both are there, `max_new_tokens` counts.
        stop_strings: texts that end a row; they need a tokenizer, as in
            `StopStrings(settings.stop_strings, tokenizer)`.
        samples: whether tokens are drawn.
        processors: what comes first, whether tokens are drawn or not.
        warpers: what comes before a token is drawn.
        normalize: whether `Normalize()` comes last.
        beams, groups, length_penalty, diversity_penalty, early_stopping: of a beam search.
        texts: how many texts there are to be of each prompt.

    Example:
        >>> import eqxformer as ef
        >>> said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]}
        >>> settings = ef.GenerationSettings.from_dict(said)
        >>> settings.stop, [type(part).__name__ for part in settings.warpers]
        ((2, 5), ['Temperature', 'TopK', 'TopP'])
        >>> sorted(settings.options(max_new_tokens=20))
        ['max_new_tokens', 'sampler', 'stop']
    """

    stop: tuple[int, ...] = ()
    start: int | None = None
    pad: int | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    samples: bool = False
    processors: tuple[Processor, ...] = ()
    warpers: tuple[Processor, ...] = ()
    normalize: bool = False
    beams: int = 1
    groups: int = 1
    length_penalty: float = 1.0
    diversity_penalty: float = 0.0
    early_stopping: bool | Literal["never"] = False
    texts: int = 1

    @staticmethod
    def read(
        source: str | os.PathLike[str], *, revision: str | None = None
    ) -> "GenerationSettings":
        """The settings of a checkpoint: a directory, or an id of the Hugging Face Hub.

        Old checkpoints have them among the keys of their `config.json`, where they are looked for
        if there is no `generation_config.json`. Beside a model in our own format, that file counts
        too.

        Arguments:
            source, revision: as of `from_pretrained`.

        Raises `MissingFile` where there is neither file, `CheckpointError` for a file that is wrong
        or has keys that are not known, and `NotImplementedError` for what is not supported.
        """
        folder = locate(source, revision=revision, patterns=("config.json", _FILE))
        try:
            model = read_json(folder / "config.json", limit_bytes=_LIMIT)
        except MissingFile:
            model = None
        try:
            values = read_json(folder / _FILE, limit_bytes=_LIMIT)
        except MissingFile:
            if model is None:
                raise
            known = READ | set(NEUTRAL)
            said = {key: value for key, value in model.items() if key in known}
            return _settings(said, "config.json", model)
        return _settings(values, _FILE, model)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "GenerationSettings":
        """The settings that the keys of a `generation_config.json` say.

        Raises `CheckpointError` and `NotImplementedError` as `read` does.
        """
        return _settings(dict(values), _FILE, None)

    @property
    def sampler(self) -> Sampler:
        """How a token is chosen: `processors | warpers | Sample()`, or `processors | Greedy()`."""
        if self.samples:
            return Chain(*self.processors, *self.warpers, *self._last()) | Sample()
        return Chain(*self.processors, *self._last()) | Greedy()

    def options(
        self, *, prompt: int | None = None, max_new_tokens: int | None = None
    ) -> dict[str, Any]:
        """The keyword arguments of `generate` that say the same.

        Arguments:
            prompt: how many tokens the longest prompt has, where `max_length` counts them; that of
                an encoder-decoder has one, its start.
            max_new_tokens: how many tokens may be made, whatever the settings say. Where they say
                nothing and this is None, `generate` has to be told.

        Raises `ValueError` for settings that one call of `generate` does not do: beams, several
        texts, strings to stop at, or a prompt that leaves no room.
        """
        if self.beams > 1:
            raise ValueError(
                f"The settings ask for {self.beams} beams: use `beam_options()` with "
                "`beam_search`, or `dataclasses.replace(settings, beams=1)`."
            )
        if self.texts > 1:
            raise ValueError(
                f"The settings ask for {self.texts} texts of each prompt: give each as often, and "
                "use `dataclasses.replace(settings, texts=1)`."
            )
        return self._shared(prompt, max_new_tokens) | {"sampler": self.sampler}

    def beam_options(
        self, *, prompt: int | None = None, max_new_tokens: int | None = None
    ) -> dict[str, Any]:
        """The keyword arguments of `beam_search` that say the same; arguments as of `options`.

        Raises `ValueError` as `options` does, and `NotImplementedError` where beams are drawn.
        """
        if self.samples:
            raise NotImplementedError(
                "`beam_search` takes the likeliest continuations; got settings whose beams are "
                "drawn (`do_sample`). Use `dataclasses.replace(settings, samples=False)`."
            )
        parts = (*self.processors, *self._last())
        return self._shared(prompt, max_new_tokens) | {
            "processor": Chain(*parts) if parts else None,
            "beams": self.beams,
            "groups": self.groups,
            "length_penalty": self.length_penalty,
            "diversity_penalty": self.diversity_penalty,
            "early_stopping": self.early_stopping,
            "best": self.texts,
        }

    def _last(self) -> tuple[Processor, ...]:
        return (Normalize(),) if self.normalize else ()

    def _shared(self, prompt: int | None, new: int | None) -> dict[str, Any]:
        if self.stop_strings:
            raise ValueError(
                f"The settings stop at the strings {list(self.stop_strings)}: give `generate` "
                "`stop=ef.StopIds(settings.stop) | ef.StopStrings(settings.stop_strings, "
                "tokenizer)`, and use `dataclasses.replace(settings, stop_strings=())`."
            )
        new = self._new(prompt) if new is None else new
        found: dict[str, Any] = {"stop": self.stop}
        found |= {} if new is None else {"max_new_tokens": new}
        return found if self.start is None else found | {"start": self.start}

    def _new(self, prompt: int | None) -> int | None:
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        prompt = 1 if prompt is None and self.start is not None else prompt
        if prompt is None:
            raise ValueError(
                f"The settings' `max_length` of {self.max_length} counts the prompt: use "
                "`options(prompt=...)` or `options(max_new_tokens=...)`."
            )
        if prompt >= self.max_length:
            raise ValueError(
                f"The settings' `max_length` of {self.max_length} leaves no room after a prompt of "
                f"{prompt} tokens; use `options(max_new_tokens=...)`."
            )
        return self.max_length - prompt


def _start(said: Settings, model: dict[str, Any] | None) -> int | None:
    """The first token of a target, by default the one that begins a text; a decoder has none."""
    start = said.size("decoder_start_token_id", None, least=0)
    if model is None:
        return start
    if not _has_targets(model):
        return None
    return said.size("bos_token_id", None, least=0) if start is None else start


def _has_targets(model: dict[str, Any]) -> bool:
    """Whether a `config.json`, of transformers or our own, is of an encoder-decoder."""
    if model.get("format") == "eqxformer":
        own = model.get("model")
        return isinstance(own, dict) and own.get("type") == "EncoderDecoder"
    return model.get("is_encoder_decoder") is True


def _strings(said: Settings) -> tuple[str, ...]:
    value = said.get("stop_strings", ())
    strings = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(each, str) for each in strings):
        raise said.wrong("stop_strings", "a string or a list of them", value)
    return strings


def _settings(
    values: dict[str, Any], where: str, model: dict[str, Any] | None
) -> GenerationSettings:
    """The settings, given the model's own where they are known."""
    said = Settings(values, where=where)
    _check_keys(said)
    stop = as_ids(said, "eos_token_id")
    pad = said.size("pad_token_id", None, least=-1)
    early = said.get("early_stopping", False)
    if early not in (True, False, "never"):
        raise said.wrong("early_stopping", 'true, false or "never"', early)
    try:
        return GenerationSettings(
            stop=stop,
            start=_start(said, model),
            pad=None if pad == -1 else pad,
            max_new_tokens=said.size("max_new_tokens", None),
            max_length=said.size("max_length", None),
            stop_strings=_strings(said),
            samples=said.flag("do_sample", False),
            processors=processors_of(said, stop),
            warpers=warpers_of(said),
            normalize=said.flag("renormalize_logits", False),
            beams=said.size("num_beams", 1),
            groups=said.size("num_beam_groups", 1),
            length_penalty=said.number("length_penalty", 1.0),
            diversity_penalty=said.number("diversity_penalty", 0.0),
            early_stopping=early,
            texts=said.size("num_return_sequences", 1),
        )
    except CheckpointError:
        raise
    except ValueError as error:  # of a processor whose number is out of bounds
        raise CheckpointError(f"{where}: {error}") from None


def _check_keys(said: Settings) -> None:
    """Raises for keys that are not known, or ask for what there is not."""
    for key, allowed in NEUTRAL.items():
        value = said.values.get(key)
        if value is not None and value not in allowed:
            words = " or ".join((*map(repr, allowed), "nothing"))
            raise NotImplementedError(
                f"{said.where}: `{key}` is {value!r:.60}; supported is {words}. To go without it, "
                "take it out of the file, or out of what `from_dict` is given."
            )
    known = READ | INERT | set(NEUTRAL)
    left = sorted(set(said.values) - known)
    if left:
        lines = "".join(
            f"\n  {key} = {said.values[key]!r:.60}{nearest(key, known)}" for key in left
        )
        raise CheckpointError(
            f"{said.where} has keys that are not known. Ignoring them could change the texts that "
            f"are made:{lines}"
        )
