"""A model of transformers, tiny and random: its checkpoint, what it computes, and how exactly.

The reference runs in float32 and in float64. The difference of the two is the noise of float32 in
this very model with these very weights, and 30 times that noise is what ours may be off.
"""

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers.core_model_loading import revert_weight_conversion

from tests.helpers.parity import (
    Arrays,
    Expected,
    hidden,
    loss_weight,
    make_batch,
    make_ended_batch,
    without_padding,
)

hf.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny and the tests share the cores

VOCAB = 50
# Narrower, XLA puts products of matrices into its loops and takes four times as long to compile.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A class of transformers and the settings of a tiny model of it.

    Arguments:
        model: the name of the class.
        settings: of its config; strings, numbers, lists and dicts.
        places: `real` where the reference is told positions that count real tokens; `own` where
            it counts them itself; `all` where it counts padding too, whatever it is told.
        attention: the reference's implementation; sdpa survives float64 with padding.
        buffers: tensors that are not trained there but are parameters of ours.
        prepare: done to the reference once it is made.
        golden: whether what it computes is stored among the golden files.
    """

    model: str
    settings: Mapping[str, Any]
    places: str = "real"
    attention: str = "sdpa"
    buffers: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda model: None
    golden: bool = True

    def reference(self, regime: str) -> Any:
        """The reference model in one of the regimes."""
        cls = getattr(hf, self.model)
        torch.manual_seed(0)
        settings = copy.deepcopy(dict(self.settings))  # a config writes into what it is given
        config = cls.config_class(**settings, attn_implementation=self.attention)
        model = cls(config).eval()
        self.prepare(model)
        with torch.no_grad():
            REGIMES[regime](dict(self.tensors(model)))
        return model

    def tensors(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """What there is to learn: parameters, tied ones once, and the buffers asked for."""
        stored = getattr(model, "all_tied_weights_keys", {})  # the name on disk of a tied one
        for key, tensor in model.named_parameters():
            if tensor.requires_grad:
                yield stored.get(key, key), tensor
        for key in self.buffers:
            yield key, model.get_buffer(key)


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Norms, softmaxes and tables that the reference always computes in float32, in float64."""
    narrow, method = torch.float32, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = narrow
        torch.Tensor.float = method


def cold(tensors: Mapping[str, torch.Tensor]) -> None:
    """The reference's own initialisation: small numbers, among which the epsilons of norms show."""


def quiet(tensors: Mapping[str, torch.Tensor]) -> None:
    """Gains of norms lowered to a tenth, so that an epsilon shows even where the norm before it
    would have made everything as large as one. Some store the gain less one."""
    for key, tensor in tensors.items():
        if tensor.ndim == 1 and key.endswith("weight"):
            tensor -= 0.9


def hot(tensors: Mapping[str, torch.Tensor]) -> None:
    """Every parameter moved off its neutral value, so that none can be dropped unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 1:
            tensor += 0.3 * noise
        else:
            tensor.copy_(2.0 * tensor.shape[-1] ** -0.5 * noise)


REGIMES = {regime.__name__: regime for regime in (cold, quiet, hot)}


def expected_of(case: Case, model: Any) -> Expected:
    """What the reference makes of the batch, exactly, and the noise of its float32."""
    padding = getattr(model.config, "pad_token_id", None) or 0
    batch = make_batch(vocab=VOCAB, padding=padding)
    inputs = inputs_of(model, batch)
    narrow, narrow_gradients = run(case, model, inputs)
    with float64_throughout():
        exact, exact_gradients = run(case, copy.deepcopy(model).double(), inputs)
    noise = {f"output.{k}": _gap(narrow[k], exact[k]) for k in exact}
    noise |= {f"gradient.{k}": _gap(narrow_gradients[k], g) for k, g in exact_gradients.items()}
    return Expected(inputs, exact, exact_gradients, noise, case.places)


def inputs_of(model: Any, batch: Arrays) -> Arrays:
    """What of the batch a model takes."""
    taken = ["tokens", "valid"]
    if model.main_input_name == "input_features":
        return {key: batch[key] for key in taken} | audio(model)
    if reads_its_target(model):
        vocab, padding = model.config.vocab_size, model.config.pad_token_id
        return make_ended_batch(model.config.eos_token_id, vocab=vocab, padding=padding)
    if _takes(model, "decoder_input_ids"):
        taken += ["source", "source_valid"]
    if getattr(model.config, "type_vocab_size", 0) > 1 and _takes(model, "token_type_ids"):
        taken.append("types")
    return {key: batch[key] for key in taken}


def audio(model: Any) -> Arrays:
    """Frames for an audio encoder, as many as it has places for, since it takes no other number."""
    places, random = model.config.max_source_positions, np.random.default_rng(7)
    frames = random.normal(size=(4, 2 * places, model.config.num_mel_bins))
    return {"frames": frames.astype(np.float32), "source_valid": np.ones((4, places), bool)}


def run(case: Case, model: Any, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """The reference's outputs, zero at padding, and the gradients of all that can be learned."""
    tensors = {key: tensor.requires_grad_() for key, tensor in case.tensors(model)}
    outputs = outputs_of(case, model, {k: torch.from_numpy(v) for k, v in inputs.items()})
    loss = sum(
        (output * torch.from_numpy(without_padding(weight, inputs)).to(output.dtype)).sum()
        for key, output in outputs.items()
        if (weight := loss_weight(key, output.shape)) is not None
    )
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    numbers = {k: without_padding(o.detach().numpy(), inputs) for k, o in outputs.items()}
    # What a choice alone depends on has no gradient there, and one of zero here.
    known = {
        key: torch.zeros_like(tensor) if gradient is None else gradient
        for (key, tensor), gradient in zip(tensors.items(), gradients, strict=True)
        if gradient is not None or key in case.buffers
    }
    stored = revert_weight_conversion(model, known)  # as in a file: named, split and joined
    return numbers, {key: gradient.numpy() for key, gradient in stored.items()}


def outputs_of(case: Case, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hidden states and results of the reference."""
    valid = inputs["valid"].long()
    if _takes(model, "decoder_input_ids"):
        out = model(**_both_sides(model, inputs), output_hidden_states=True, use_cache=False)
        return {
            **hidden(out.encoder_hidden_states[:-1], ".source"),
            **hidden(out.decoder_hidden_states[:-1], ".target"),
            **_results(out, valid),
        }
    more: dict[str, Any] = {}
    if case.places == "real" and _takes(model, "position_ids"):
        more["position_ids"] = (valid.cumsum(-1) - 1).clamp(min=0)
    if "types" in inputs:
        more["token_type_ids"] = inputs["types"]
    if _takes(model, "use_cache"):
        more["use_cache"] = False
    out = model(input_ids=inputs["tokens"], attention_mask=valid, output_hidden_states=True, **more)
    return {**hidden(out.hidden_states[:-1]), **_results(out, valid)}


def _both_sides(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an encoder-decoder is called with: a source and a target, or the source alone."""
    valid = inputs["valid"].long()
    if reads_its_target(model):
        return {"input_ids": inputs["tokens"], "attention_mask": valid}
    target = {"decoder_input_ids": inputs["tokens"], "decoder_attention_mask": valid}
    if "frames" in inputs:
        return {"input_features": inputs["frames"].to(model.dtype).mT, **target}
    mask = inputs["source_valid"].long()
    return {"input_ids": inputs["source"], "attention_mask": mask, **target}


def _results(out: Any, valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits, or the last hidden states and what is pooled of them."""
    if hasattr(out, "start_logits"):
        return {"logits": torch.stack([out.start_logits, out.end_logits], -1)}
    logits = getattr(out, "logits", getattr(out, "prediction_logits", None))
    if logits is not None:
        lone = logits.shape == valid.shape  # the score of one label, without an axis for labels
        return {"logits": logits[..., None] if lone else logits}
    pooled = getattr(out, "pooler_output", None)
    return {"last": out.last_hidden_state, **({} if pooled is None else {"pooled": pooled})}


def reads_its_target(model: Any) -> bool:
    """Whether a model's decoder is given the text that its encoder reads: those with labels."""
    labelled = ("ForSequenceClassification", "ForQuestionAnswering")
    return _takes(model, "decoder_input_ids") and type(model).__name__.endswith(labelled)


def _takes(model: Any, name: str) -> bool:
    """Whether a model's call has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def _gap(narrow: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(narrow - exact).max())


def store(model: Any, directory: Path) -> None:
    """The reference's checkpoint, as transformers writes it."""
    model.save_pretrained(directory)
