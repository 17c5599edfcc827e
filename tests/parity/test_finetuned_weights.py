"""The recipe `finetune` on real weights: better than before, and loaded by other libraries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf

import eqxformer as ef
from eqxformer.training.callbacks import evaluator
from eqxformer.training.recipes.finetune import EXPORTED, Finetuning, ids_of
from tests.parity.test_real_weights import TOLERANCE, directory  # noqa: F401

STEPS, WARMUP = 12, 3  # of 100 that the recipe takes


@pytest.fixture(scope="module")
def trained(directory, tmp_path_factory):  # noqa: F811
    """The task, the model that comes out of a few steps, and where it was exported."""
    folder, task = tmp_path_factory.mktemp("run"), Finetuning(directory)
    experiment = task.experiment.edit("data", batch=16).edit("model", layout=ef.Scanned())
    experiment = experiment.edit("optimizer.learning_rate", warmup=WARMUP)
    trainer = ef.Trainer(
        experiment.init(),
        task.batches(experiment),
        experiment.optimizer.build(STEPS),
        STEPS,
        key=jax.random.key(0),
        loss=experiment.loss,
        callbacks=task.callbacks(experiment, folder),
    )
    with jax.debug_key_reuse(False):  # which costs a second compilation of the step
        trainer.fit()
    return task, trainer.outcome, folder / EXPORTED


@pytest.fixture(scope="module")
def vectors(trained):
    """The sentences kept back, and their embeddings."""
    task, model, _ = trained
    texts = list(task.experiment.data.to_validate().in_words[:20])
    found = jax.tree.map(jnp.asarray, ids_of(task.tokenizer, texts))
    embed = eqx.filter_jit(lambda m: m.embed(found.tokens, mask=found.mask()))
    return texts, np.asarray(embed(model))


def test_times_that_were_kept_back_are_found_more_often_than_before(trained):
    task, model, _ = trained
    measure = evaluator(task.experiment.loss)
    batches = task.validation(task.experiment.edit("data", kept_back=60))
    before, after = (measure(each, batches).means() for each in (task.experiment.init(), model))
    assert after["loss"] < before["loss"] - 0.3
    assert after["accuracy"] > before["accuracy"]


def test_sentence_transformers_embeds_the_same_from_what_was_exported(trained, vectors):
    library = pytest.importorskip("sentence_transformers")
    texts, ours = vectors
    theirs = library.SentenceTransformer(str(trained[2]), device="cpu").encode(texts)
    assert np.abs(theirs - ours).max() < TOLERANCE


def test_transformers_embeds_the_same_from_what_was_exported(trained, vectors):
    texts, ours = vectors
    tokenizer = hf.AutoTokenizer.from_pretrained(trained[2])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = hf.AutoModel.from_pretrained(trained[2]).eval()(**batch).last_hidden_state
    valid = batch["attention_mask"][..., None]
    mean = (states * valid).sum(1) / valid.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    assert np.abs(expected - ours).max() < TOLERANCE
