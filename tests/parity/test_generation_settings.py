"""A generation_config.json makes of logits what transformers makes of them, key by key."""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig

import eqxformer as ef
from eqxformer.generation._settings_keys import INERT, NEUTRAL, READ

ROWS, VOCAB = 5, 60
PROMPT, NEW = 4, 9

DRAWN = {"do_sample": True, "top_k": 0}
CONFIGS = {
    "nothing": {},
    "the defaults of a sampler": {"do_sample": True},
    "llama": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]},
    "qwen": {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
        "eos_token_id": [2, 5],
        "pad_token_id": 1,
    },
    "bart": {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "no_repeat_ngram_size": 3,
        "min_length": 6,
        "eos_token_id": 2,
        "early_stopping": True,
        "num_beams": 4,
    },
    "whisper": {
        "suppress_tokens": [1, 2, 7],
        "begin_suppress_tokens": [3, 9],
        "eos_token_id": 9,
        "forced_bos_token_id": 4,
    },
    "typical": {**DRAWN, "typical_p": 0.3, "temperature": 1.3},
    "min_p": {**DRAWN, "min_p": 0.1, "temperature": 1.3},
    "epsilon and eta": {**DRAWN, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    "top_h": {**DRAWN, "top_h": 0.4, "renormalize_logits": True},
    "biased": {
        "sequence_bias": [[[1], 2.0], [[0, 1], -3.0]],
        "bad_words_ids": [[3], [2, 1], [2]],
        "eos_token_id": 2,
        "exponential_decay_length_penalty": [2, 1.3],
        "min_new_tokens": 5,
    },
    "greedy with leftovers": {"temperature": 0.3, "top_p": 0.5, "typical_p": 0.2, "top_k": 3},
    "everything": {
        "do_sample": True,
        "temperature": 0.8,
        "top_h": 0.9,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.97,
        "epsilon_cutoff": 1e-3,
        "eta_cutoff": 1e-3,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "eos_token_id": [2, 5],
        "min_new_tokens": 3,
        "forced_eos_token_id": 5,
        "suppress_tokens": [8],
        "begin_suppress_tokens": [6],
        "renormalize_logits": True,
        "forced_bos_token_id": 7,
    },
}


@functools.cache
def their_model(seq2seq):
    sizes = {"vocab_size": VOCAB, "d_model": 8, "num_heads": 1, "d_kv": 8, "d_ff": 8}
    if seq2seq:
        config = transformers.T5Config(**sizes, num_layers=1, decoder_start_token_id=0)
        return transformers.T5ForConditionalGeneration(config)
    small = {"vocab_size": VOCAB, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**small))


def their_processors(values, prompt, seq2seq):
    """Their list, as `generate` puts it together."""
    model = their_model(seq2seq)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is set and has no effect
        config = GenerationConfig(**values)
        model.generation_config = GenerationConfig()
        config, _ = model._prepare_generation_config(config)
    config.max_length = prompt + NEW
    model._prepare_special_tokens(config, device="cpu")
    return model._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")


@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "target"])
@pytest.mark.parametrize("name", CONFIGS)
def test_processed_logits_are_theirs(name, seq2seq):
    values = {"decoder_start_token_id": 0, **CONFIGS[name]} if seq2seq else CONFIGS[name]
    prompt = 1 if seq2seq else PROMPT
    sampler = ef.GenerationSettings.from_dict(values).sampler
    reference = their_processors(values, prompt, seq2seq)
    for new in (0, 1, 2, 4, NEW - 1):
        random = np.random.default_rng(new)
        logits = random.standard_normal((ROWS, VOCAB)).astype(np.float32) * 3
        ids = random.integers(0, 6, (ROWS, prompt + new))
        known = (prompt + new, prompt, prompt + NEW)
        seen = ef.Seen(jnp.asarray(ids), *(jnp.full(ROWS, count) for count in known))
        found = np.asarray(sampler.process(jnp.asarray(logits), seen))
        expected = reference(torch.from_numpy(ids), torch.from_numpy(logits.copy())).numpy()
        np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_every_key_of_theirs_is_accounted_for():
    theirs = set(GenerationConfig().to_dict()) | set(vars(GenerationConfig()))
    assert theirs <= READ | INERT | set(NEUTRAL)


@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "target"])
def test_a_file_that_they_write_is_read(seq2seq, tmp_path):
    config = GenerationConfig(eos_token_id=[2, 5], pad_token_id=0, do_sample=True, top_p=0.9)
    config.save_pretrained(tmp_path)
    settings = ef.GenerationSettings.read(tmp_path)
    assert (settings.stop, settings.pad, settings.samples) == ((2, 5), 0, True)
    their_model.__wrapped__(seq2seq).save_pretrained(tmp_path / "model")
    read = ef.GenerationSettings.read(tmp_path / "model")
    assert read.stop == ((1,) if seq2seq else (50256,))
    assert read.start == (0 if seq2seq else None)
