"""A checkpoint's `config.json`, which remembers what has been read of it.

An architecture reads the keys it knows; whatever is left over in the end is an error that names it,
so that no setting is ever ignored in silence.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.stored import Computed, Planned, Stored
from eqxformer.layers.activations import Activation

_REQUIRED: Any = object()
_LARGEST = 2**31  # of a size; beyond it nothing fits anywhere
_MOST_LAYERS = 2048

# Keys that say nothing about what the model computes. Those about generation are read by what
# generates; those about a head's labels by whoever shows them.
INERT = frozenset(
    """
    _name_or_path transformers_version torch_dtype dtype model_type architectures auto_map
    _attn_implementation _attn_implementation_autoset _commit_hash output_attentions
    output_hidden_states output_past return_dict use_return_dict torchscript use_cache use_bfloat16
    gradient_checkpointing chunk_size_feed_forward tf_legacy_loss initializer_range
    initializer_factor init_std pretraining_tp tokenizer_class prefix is_encoder_decoder
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids
    begin_suppress_tokens suppress_tokens do_sample early_stopping max_length min_length
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_beams num_beam_groups
    num_return_sequences diversity_penalty repetition_penalty temperature top_k top_p typical_p
    exponential_decay_length_penalty remove_invalid_values output_scores return_dict_in_generate
    normalize_before_logits task_specific_params finetuning_task id2label label2id problem_type
    num_labels _num_labels transformers.js_config unsloth_version unsloth_fixed
    sbert_ce_default_activation_function sentence_transformers language name name_or_path model_name
    custom_pipelines xla_device attn_implementation use_flash_attention_2 _flash_attn_2_enabled
    """.split()  # noqa: SIM905
)

# Keys that would change what the model computes, and the one value that does not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
}

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
# The other way round, for what is written.
THEIR_ACTIVATIONS: Mapping[str, str] = {
    **{name: name for name in ("gelu", "quick_gelu", "silu", "relu", "tanh", "sigmoid")},
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu_squared": "relu2",
}


class Settings:
    """The keys of a `config.json`, each read with its type, and what the tensors beside it say.

    Every reader takes a key and the value to use where the key is absent or null; without one, the
    key is required. All errors are `CheckpointError`s that name the key.

    Arguments:
        values: what is in `config.json`.
        stored: the tensors of the checkpoint; None for settings alone, such as a preset's.
        where: what to call the file in errors.

    Example:
        >>> from eqxformer.checkpoints import Settings
        >>> settings = Settings({"hidden_size": 64, "hidden_act": "gelu_new", "oops": 1})
        >>> settings.size("hidden_size"), settings.activation("hidden_act")
        (64, 'gelu_tanh')
        >>> settings.unread()
        ['oops']
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        stored: Stored | None = None,
        where: str = "config.json",
    ) -> None:
        self.values, self.stored, self.where = dict(values), stored, where
        self._read: set[str] = set()

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a key as it stands."""
        self._read.add(key)
        value = self.values.get(key)
        if value is None and default is _REQUIRED:
            near = nearest(key, set(self.values) - INERT)
            raise CheckpointError(f"{self.where} lacks `{key}`.{near}")
        return default if value is None else value

    def size(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> Any:
        """A whole number, one or more."""
        value = self.get(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
            raise self.wrong(key, f"a whole number from {least} to 2^31", value)
        return value

    def maybe(self, key: str, absent: int | None = None) -> int | None:
        """A size that null turns off, which is another thing than an absent key."""
        self._read.add(key)
        if key not in self.values:
            return absent
        return None if self.values[key] is None else self.size(key)

    def layers(self, key: str, default: Any = _REQUIRED) -> int:
        """A number of layers: not more than there are tensors."""
        count = self.size(key, default, least=0)
        most = _MOST_LAYERS if self.stored is None else min(_MOST_LAYERS, len(self.stored.names))
        if count > most:
            raise self.wrong(key, f"at most {most}, since every layer has tensors", count)
        return count

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number."""
        value = self.get(key, default)
        if value is default:
            return value
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value):
            raise self.wrong(key, "a finite number", value)
        return float(value)

    def rate(self, key: str, default: float = 0.0) -> float:
        """A probability of dropping something."""
        value = self.number(key, default)
        if not 0.0 <= value < 1.0:
            raise self.wrong(key, "at least 0 and below 1", value)
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def choice(self, key: str, among: Iterable[str], default: Any = _REQUIRED) -> str:
        """One of a few words."""
        value, words = self.get(key, default), list(among)
        if value not in words:
            raise self.wrong(key, f"one of {', '.join(words)}", value)
        return value

    def activation(self, key: str, default: Any = _REQUIRED) -> Activation:
        """The name of an activation, in our words."""
        return ACTIVATIONS[self.choice(key, ACTIVATIONS, default)]

    def items(self, key: str, default: Any = _REQUIRED) -> Any:
        """A list."""
        value = self.get(key, default)
        if value is not default and not isinstance(value, list | tuple):
            raise self.wrong(key, "a list", value)
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Reads a key for which just these values are supported; it may be absent or null."""
        value = self.get(key, None)
        if value is not None and value not in allowed:
            words = " or ".join(map(repr, allowed))
            raise self.wrong(key, f"{words}, all that is supported", value)

    def synonyms(self, **others: str) -> None:
        """Says of keys under what other name files may have them: `synonyms(n_embd="hidden_size")`.

        `CheckpointError` for a file that has both, with different values.
        """
        for key, other in others.items():
            if other in self.values:
                value = self.values.pop(other)
                if self.values.setdefault(key, value) != value:
                    raise self.wrong(key, f"{value!r}, as `{other}` says", self.values[key])

    def suppose(self, **defaults: Any) -> None:
        """Says what absent keys mean where an architecture differs from the one it derives from."""
        for key, value in defaults.items():
            self.values.setdefault(key, value)

    def skip(self, *keys: str) -> None:
        """Says of keys that they make no difference to what is computed."""
        self._read.update(keys)

    def labels(self) -> int:
        """How many labels a classifier has."""
        named = self.get("id2label", None)
        if isinstance(named, dict):
            return len(named)
        return self.size("num_labels", 2)

    def holds(self, name: str, *, default: bool = True) -> bool:
        """Whether the checkpoint has a tensor of this name; `default` without any tensors."""
        return default if self.stored is None else self.stored.find(name) is not None

    def tied(self, head: str, table: str, *, default: bool, trusted: bool = True) -> bool:
        """Whether a head is the token table itself.

        The settings say so unless the file has a head of its own with other numbers. A head that
        is there and equal is read with the table; one that is neither there nor tied is missing.

        Arguments:
            head, table: the names of the two tensors.
            default: what an absent `tie_word_embeddings` means.
            trusted: whether the settings, when they say so, are right about a model that is about
                to be written; encoder-decoders of version 5 always say so, and the file tells.
        """
        said = self.flag("tie_word_embeddings", default)
        stored = self.stored
        if not said or stored is None or stored.find(head) is None:
            return said
        if stored.find(table) is None:  # one of two names is left of a tensor that is shared
            stored.call(table, head)
            return True
        if isinstance(stored, Planned) and not trusted:
            return False
        if not stored.equal(head, table):
            return False
        stored.repeats.add(head)
        return True

    def repeats(self, copy: str, original: str) -> None:
        """Says that files may hold a tensor twice; `CheckpointError` where the two differ."""
        stored = self.stored
        if stored is None or stored.find(copy) is None or stored.find(original) is None:
            return
        if not stored.equal(copy, original):
            raise CheckpointError(
                f"{self.where}: the tensors {copy} and {original} must be equal; they differ."
            )
        stored.repeats.add(copy)

    def copies(self, original: str, *others: str) -> None:
        """Says that files may hold a tensor under other names too, or under one of them alone."""
        stored = self.stored
        if stored is None:
            return
        there = [name for name in others if stored.find(name) is not None]
        if there and stored.find(original) is None:
            stored.call(original, there.pop(0))
        for name in there:
            self.repeats(name, original)

    def follows(self, name: str, computed: Computed) -> None:
        """Says that files may hold a tensor that is computed; `CheckpointError` for another one.

        It may have been computed, and rounded, in a smaller type.
        """
        stored = self.stored
        if stored is None or stored.find(name) is None:
            return
        right = stored.shape(name) == computed.shape
        if right:
            found = stored.read(name).astype(np.float32)
            right = np.allclose(found, computed.numbers(), rtol=0, atol=1e-2)
        if not right:
            raise CheckpointError(
                f"{self.where}: the tensor {name} must be the one that follows from the settings, "
                f"of shape {computed.shape}; it has other numbers, or another shape."
            )
        stored.repeats.add(name)

    def wrong(self, key: str, expected: str, got: Any) -> CheckpointError:
        """The error for a key whose value is not what it should be."""
        text = repr(got)
        text = text if len(text) < 80 else f"{text[:77]}..."
        return CheckpointError(f"{self.where}: `{key}` must be {expected}; got {text}.")

    def unread(self) -> list[str]:
        """The keys that were neither read nor make no difference, as null makes none."""
        said = {key for key, value in self.values.items() if value is not None}
        return sorted(said - self._read - INERT - set(NEUTRAL))

    def check_all_read(self, architecture: str) -> None:
        """Raises `CheckpointError` with all keys that are left over, and the nearest known ones."""
        for key, allowed in NEUTRAL.items():
            if key not in self._read:
                self.only(key, *allowed)
        left = self.unread()
        if left:
            known = self._read | INERT
            lines = "".join(
                f"\n  {key} = {self.values[key]!r:.60}{nearest(key, known)}" for key in left
            )
            raise CheckpointError(
                f"{self.where} has keys that {architecture} does not know. Ignoring them could "
                f"change what the model computes:{lines}"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for the nearest of the names known, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" Did you mean `{found[0]}`?" if found else ""
