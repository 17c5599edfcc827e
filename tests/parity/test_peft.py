"""Adapters of ours in peft and of peft in ours: equal results, both ways."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import eqxformer as ef
from tests.adapters.made import learned
from tests.helpers.compare import same_bits
from tests.helpers.parity import make_batch, ours, without_padding
from tests.parity.cases import CASES
from tests.parity.live import inputs_of, outputs_of, store

peft = pytest.importorskip("peft")
# What peft asks of transformers 5.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = {
    "LoRA": (ef.LoRA(rank=2, alpha=1.0), {}),
    "rsLoRA": (ef.LoRA(rank=3, alpha=1.0, scale="alpha/sqrt(rank)"), {"use_rslora": True}),
    "DoRA": (ef.DoRA(rank=2, alpha=1.0), {"use_dora": True}),
}
# What is adapted, in our words and in theirs; of GPT-2 all that `c_attn` holds.
WHERE = {
    "llama": (("**.query", "**.value", "**.down"), ["q_proj", "v_proj", "down_proj"]),
    "bert": (("**.query", "**.attention.out"), ["query", "attention.output.dense"]),
    "t5": (("**.query", "**.key", "**.up"), ["q", "k", "wi"]),
    "gpt2": (("blocks.*.attention", "**.down"), ["c_attn", "c_proj"]),
}
PAIRS = [
    pytest.param(name, kind, marks=pytest.mark.xdist_group(name))
    for name in WHERE
    for kind in KINDS
]
# Of the largest number. The weights are as they start: float32 makes little noise of them.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The reference of a case and the directory of its checkpoint, made once."""

    @functools.cache
    def find(name):
        folder = tmp_path_factory.mktemp("stored") / name
        model = CASES[name].reference("cold")
        store(model, folder)
        return model, folder

    return find


def base_of(name, stored):
    """A new base model, since peft changes the one that it is given."""
    model, folder = stored(name)
    return type(model).from_pretrained(folder, attn_implementation=CASES[name].attention).eval()


def load_into(base, folder):
    """peft puts adapters into a base, without a word about tensors missing or left over."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        peft.PeftModel.from_pretrained(base, folder).eval()
    assert not [str(each.message) for each in said if "key" in str(each.message)]


def move_trained(made):
    """As if peft had trained it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.requires_grad:
                tensor += 0.2 * torch.randn(tensor.shape) / tensor.shape[-1] ** 0.5


def assert_equal_results(name, model, reference):
    """Of our model and of a reference that peft has changed within; gives the results."""
    inputs = inputs_of(reference, make_batch())
    with torch.no_grad():
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        expected = outputs_of(CASES[name], reference, tensors)
    arrays = {key: jnp.asarray(array) for key, array in inputs.items()}
    found = ours(model, arrays, CASES[name].places, bare="last" in expected)
    key = "logits" if "logits" in expected else "last"
    one, other = (without_padding(np.asarray(a), inputs) for a in (found[key], expected[key]))
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max())
    return other


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_peft_computes_what_our_adapters_do(name, kind, stored, tmp_path):
    plain = ef.from_pretrained(stored(name)[1])
    model = ef.add_lora(plain, KINDS[kind][0], to=WHERE[name][0], key=jax.random.key(0))
    model = learned(model)
    ef.save_adapters(model, tmp_path / "adapters")
    base = base_of(name, stored)
    before = assert_equal_results(name, plain, base)
    load_into(base, tmp_path / "adapters")
    after = assert_equal_results(name, model, base)
    assert np.abs(after - before).max() > 100 * TOLERANCE * np.abs(before).max()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_our_model_computes_what_adapters_of_peft_do(name, kind, stored, tmp_path):
    lora, options = KINDS[kind]
    options = {**options, "target_modules": WHERE[name][1], "fan_in_fan_out": name == "gpt2"}
    config = peft.LoraConfig(r=lora.rank, lora_alpha=1, lora_dropout=0.1, **options)
    base = base_of(name, stored)
    made = peft.get_peft_model(base, config).eval()
    move_trained(made)
    made.save_pretrained(tmp_path / "theirs")
    model = ef.load_adapters(ef.from_pretrained(stored(name)[1]), tmp_path / "theirs")
    assert_equal_results(name, model, base)
    ef.save_adapters(model, tmp_path / "ours")
    again = ef.load_adapters(ef.without_adapters(model), tmp_path / "ours")
    assert same_bits(again, model)


def both_ways(name, config, stored, folder, *, whole=()):
    """What peft trains is loaded into ours, and what we then save into peft: equal results."""
    base = base_of(name, stored)
    made = peft.get_peft_model(base, config).eval()
    move_trained(made)
    made.save_pretrained(folder / "theirs")
    model = ef.load_adapters(ef.from_pretrained(stored(name)[1]), folder / "theirs")
    assert_equal_results(name, model, base)
    ef.save_adapters(model, folder / "ours", whole=whole)
    new = base_of(name, stored)
    load_into(new, folder / "ours")
    assert_equal_results(name, model, new)


SETTINGS = {
    "without some": ("llama", {"exclude_modules": ["k_proj", "layers.0.self_attn.q_proj"]}, ()),
    "without a pattern": ("llama", {"exclude_modules": r".*\.1\..*"}, ()),
    "in one layer": ("llama", {"layers_to_transform": [1]}, ()),
    "a target of others": ("llama", {"target_modules": ["q_proj", "c_attn"]}, ()),
    "eva": ("llama", {"init_lora_weights": "eva"}, ()),
    "all norms": ("llama", {"modules_to_save": ["norm"]}, ("norm", "**.pre_norm")),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}, ()),
    "routers": ("mixtral", {"modules_to_save": ["gate"]}, ("**.router",)),
    "routers of some layers": ("qwen3_moe", {"modules_to_save": ["gate"]}, ("**.router",)),
    "routers with corrections": (
        "deepseek_v3",
        {"target_modules": ["o_proj"], "modules_to_save": ["gate"]},
        ("**.router", "**.correction"),
    ),
    "routers and experts": (
        "gpt_oss",
        {"modules_to_save": ["router", "experts"]},
        ("**.router", "**.experts"),
    ),
    "a target in what is saved": (
        "roberta-sequence",
        {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},
        ("head",),
    ),
}


@pytest.mark.filterwarnings("ignore:.*eva.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*`save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_peft_mean_here_what_they_mean_there(case, stored, tmp_path):
    name, options, whole = SETTINGS[case]
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "k_proj"], **options})
    both_ways(name, config, stored, tmp_path, whole=whole)


TABLE = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}


@pytest.mark.parametrize(
    ("name", "part"), [("llama-tied", "embedding"), ("whisper", "decoder.embedding.tokens")]
)
def test_a_token_table_that_peft_keeps_tied_is_replaced_in_the_head_too(
    name, part, stored, tmp_path
):
    config = peft.LoraConfig(r=2, ensure_weight_tying=True, **TABLE)
    both_ways(name, config, stored, tmp_path, whole=(part,))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_table_that_peft_replaced_in_one_place_loads_into_an_untied_base_alone(stored, tmp_path):
    name = "llama-tied"
    base = base_of(name, stored)
    made = peft.get_peft_model(base, peft.LoraConfig(r=2, **TABLE)).eval()
    move_trained(made)
    made.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ef.CheckpointError, match="Load into a base that is not tied"):
        ef.load_adapters(ef.from_pretrained(stored(name)[1]), tmp_path / "theirs")
    untied = base_of(name, stored)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    store(untied, tmp_path / "untied")
    model = ef.load_adapters(ef.from_pretrained(tmp_path / "untied"), tmp_path / "theirs")
    assert_equal_results(name, model, base)


def test_a_classifier_that_peft_trained_beside_its_adapters_comes_with_them(stored, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    both_ways("bert-sequence", config, stored, tmp_path, whole=("head.linear",))
