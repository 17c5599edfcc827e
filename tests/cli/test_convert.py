"""`eqxformer convert`: numbers, types, files and formats of what is written, and mistakes."""

import collections
import json
import sys
import weakref

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import eqxformer as ef
from eqxformer.checkpoints.tensor_files import TensorFiles
from eqxformer.pretrained.presets import described
from tests.cli.test_mistakes import refused
from tests.helpers.models import filled, logits

LLAMA = ef.families.llama(vocab=11, dim=12, layers=2, heads=3, kv_heads=1, hidden=14)
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 5,
    "vocab_size": 11,
}


@pytest.fixture
def theirs(here):
    """A checkpoint of transformers with a tokenizer."""
    ef.save_pretrained(filled(LLAMA), here / "theirs", model_type="llama")
    (here / "theirs/tokenizer.json").write_text("{}")
    return here / "theirs"


@pytest.fixture
def ours(here):
    """A model in our own format."""
    ef.save(filled(LLAMA), here / "ours")
    return here / "ours"


def equal(a, b):
    """Whether two models have the same arrays, bit for bit."""
    one, other = ef.named_arrays(a), ef.named_arrays(b)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
        for name in one
    )


def files(directory):
    """The bytes of every file of a directory by its name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_are_those_of_the_source_in_the_type_asked_for(command, here, theirs, dtype):
    code, out, err = command("convert", "theirs", "out", "--dtype", dtype)
    assert (code, err) == (0, "")
    assert out.startswith(f"out: {ef.count(filled(LLAMA)):,} parameters, ")
    assert out.endswith(f" in {dtype}.\n")
    assert json.loads((here / "out/config.json").read_text())["dtype"] == dtype
    assert equal(ef.from_pretrained("out", dtype=dtype), ef.from_pretrained("theirs", dtype=dtype))


def test_without_a_type_everything_is_written_as_it_stands(command, here, theirs):
    assert command("convert", "theirs", "out")[0] == 0
    assert files(here / "out") == files(theirs)


def test_files_hold_as_much_as_asked_for(command, here, theirs):
    assert command("convert", "theirs", "out", "--shard-size", "1.5kB")[0] == 0
    shards = sorted((here / "out").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 1500 or len(sizes) == 1
    assert equal(ef.from_pretrained("out"), ef.from_pretrained("theirs"))


def test_our_own_format_and_back_is_the_same_bytes(command, here, theirs):
    assert command("convert", "theirs", "ours", "--to", "native")[0] == 0
    assert equal(ef.load("ours"), ef.from_pretrained("theirs"))
    theirs.rename(here / "gone")  # what is needed for the way back lies in the new directory
    assert command("convert", "ours", "back")[0] == 0
    assert files(here / "back") == files(here / "gone")


def test_a_model_of_our_own_is_written_as_the_architecture_that_is_asked_for(command, here, ours):
    assert (
        command("convert", "ours", "out", "--model-type", "mistral", "--dtype", "bfloat16")[0] == 0
    )
    assert json.loads((here / "out/config.json").read_text())["model_type"] == "mistral"
    tokens = jnp.array([[3, 1, 4, 1, 5]])
    halves = ef.from_pretrained("out", dtype="bfloat16")
    assert halves.norm.weight.dtype == jnp.bfloat16
    found, expected = logits(ef.from_pretrained("out"), tokens), logits(ef.load("ours"), tokens)
    assert np.allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("form", ["transformers", "native"])
def test_pieces_of_words_go_along_and_a_tokenizer_of_the_users_own_does_not(
    command, here, ours, form
):
    for number, (text, goes) in enumerate({'{"model": {}}': True, '{"type": "x"}': False}.items()):
        (ours / "tokenizer.json").write_text(text)
        assert command("convert", "ours", f"new-{number}", "--to", form)[0] == 0
        assert (here / f"new-{number}/tokenizer.json").exists() == goes


@pytest.mark.parametrize("form", ["transformers", "native"])
def test_characters_go_along_as_a_tokenizer_that_other_libraries_read(command, here, ours, form):
    characters = ef.Characters.of("abc \né😀")
    (ours / "tokenizer.json").write_text(characters.to_json())
    assert command("convert", "ours", "new", "--to", form)[0] == 0
    text = "a😀\n\né c"
    read = Tokenizer.from_file(str(here / "new/tokenizer.json"))
    assert read.encode(text).ids == characters.encode(text).tolist()
    assert read.decode(read.encode(text).ids) == text
    assert ef.load_tokenizer(here / "new").encode(text).ids == read.encode(text).ids


def test_without_the_package_for_tokenizers_it_is_said_that_characters_are_left_out(
    command, here, ours, monkeypatch
):
    (ours / "tokenizer.json").write_text(ef.Characters.of("abc").to_json())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, err = command("convert", "ours", "new")
    assert code == 0
    assert "characters are left out" in err
    assert "pip install 'eqxformer[hub]'" in err
    assert not (here / "new/tokenizer.json").exists()


@pytest.mark.parametrize("text", ['{"type": "Characters", "alphabet": "ba"}', "[1]", "5", "{"])
def test_a_broken_tokenizer_is_no_reason_to_write_a_model_without_one(command, here, ours, text):
    (ours / "tokenizer.json").write_text(text)
    line = refused(command, here, "convert", "ours", "new")
    assert "tokenizer.json is no tokenizer: " in line


@pytest.mark.parametrize("form", ["transformers", "native"])
def test_a_tokenizer_never_lies_beside_the_weights_of_another_model(command, here, ours, form):
    for text in ('{"model": {"a": 1}}', '{"model": {"b": 2}}', '{"type": "x"}'):
        (ours / "tokenizer.json").write_text(text)
        (here / "out").mkdir(exist_ok=True)
        (here / "out/vocab.json").write_text("of an older model")
        (here / "out/additional_chat_templates").mkdir(exist_ok=True)
        (here / "out/additional_chat_templates/tool.jinja").write_text("of an older model")
        assert command("convert", "ours", "out", "--to", form, "--overwrite")[0] == 0
        there = here / "out/tokenizer.json"
        assert (there.read_text() if there.exists() else '{"type": "x"}') == text
        assert not (here / "out/vocab.json").exists()
        assert not (here / "out/additional_chat_templates").exists()


def test_our_own_format_in_another_type(command, here, ours):
    assert command("convert", "ours", "out", "--to", "native", "--dtype", "float16")[0] == 0
    assert {leaf.dtype for leaf in ef.named_arrays(ef.load("out")).values()} == {
        np.dtype("float16")
    }


def test_experts_are_read_once_though_they_are_written_one_by_one(command, here, monkeypatch):
    _, config = described(MIXTRAL, "a tiny Mixtral")
    model = filled(config)
    ef.save_pretrained(model, here / "theirs", model_type="mixtral")
    read, times = TensorFiles.read, collections.Counter()

    def counted(self, name):
        times[name] += 1
        return read(self, name)

    monkeypatch.setattr(TensorFiles, "read", counted)
    assert command("convert", "theirs", "out")[0] == 0
    monkeypatch.undo()
    assert set(times.values()) == {1}
    assert len(times) == 2 * (4 + 1 + 2 + 3 * 5) + 3
    assert equal(ef.from_pretrained(here / "out"), model)


@pytest.mark.parametrize("dtype", [[], ["--dtype", "bfloat16"]])
def test_a_checkpoint_may_be_larger_than_memory(command, theirs, monkeypatch, dtype):
    read, made, alive = TensorFiles.read, [], []

    def watched(self, name):
        tensor = read(self, name)
        made.append(weakref.ref(tensor))
        alive.append(sum(each() is not None for each in made))
        return tensor

    monkeypatch.setattr(TensorFiles, "read", watched)
    assert command("convert", "theirs", "out", *dtype)[0] == 0
    assert len(made) == len(TensorFiles.open(theirs).names)
    assert max(alive) <= 2


def test_what_is_in_the_way_is_replaced_when_asked(command, here, theirs):
    (here / "out").mkdir()
    (here / "out/model.safetensors").write_text("old")
    (here / "out/notes.txt").write_text("mine")
    assert command("convert", "theirs", "out", "--overwrite")[0] == 0
    assert (here / "out/notes.txt").read_text() == "mine"
    assert equal(ef.from_pretrained("out"), ef.from_pretrained("theirs"))


@pytest.mark.parametrize("form", ["transformers", "native"])
def test_ctrl_c_leaves_nothing_behind(command, here, theirs, monkeypatch, form):
    read, times = TensorFiles.read, []

    def pressed(self, name):
        times.append(name)
        if len(times) == 5:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(TensorFiles, "read", pressed)
    code, out, err = command("convert", "theirs", "new/deep/out", "--to", form)
    assert (code, out, err.strip()) == (130, "", "Error: interrupted.")
    assert [path.name for path in here.iterdir()] == ["theirs"]


def test_a_number_that_the_type_has_no_room_for_stops_everything(command, here, theirs):
    model = ef.from_pretrained(theirs)
    large = eqx.tree_at(lambda m: m.norm.weight, model, model.norm.weight.at[0].set(1e6))
    ef.save_pretrained(large, here / "large")
    code, out, err = command("convert", "large", "out", "--dtype", "float16")
    assert (code, out) == (2, "")
    assert "`norm.weight` has numbers as large as 1e+06, for which float16 has no room" in err
    assert sorted(path.name for path in here.iterdir()) == ["large", "theirs"]
    assert command("convert", "large", "out", "--dtype", "bfloat16")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["theirs"], "Missing argument 'DST'; see eqxformer convert --help"),
        (["missing", "out"], "There is no directory missing"),
        (["../text.txt", "out"], "text.txt is a file; a checkpoint is the directory it lies in"),
        ([".", "../out"], "There is no config.json in ."),
        (["theirs", "theirs"], "DST must be a directory apart from SRC; got theirs and theirs"),
        (["theirs", "theirs/../theirs"], "DST must be a directory apart from SRC"),
        (["theirs", "theirs/out"], "DST must be a directory apart from SRC"),
        (["theirs", ".", "--overwrite"], "DST must be a directory apart from SRC"),
        (["theirs", "full"], "full is not empty; name another directory, or replace what is there"),
        (["theirs", "../text.txt"], "text.txt is a file; name a directory to save to"),
        (["theirs", "out", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16'"),
        (["theirs", "out", "--shard-size", "5 apples"], "A size must look like 5GB, 500MB"),
        (["theirs", "out", "--shard-size", "0"], "A size must be at least one byte"),
        (["theirs", "out", "--to", "onnx"], "'onnx' is not one of 'transformers', 'native'"),
        (
            ["theirs", "out", "--model-type", "lama"],
            "'lama' is not supported. Did you mean `llama`?",
        ),
        (["theirs", "out", "--model-type", "bert"], "This model cannot be expressed as bert"),
        (["theirs", "out", "--to", "native", "--shard-size", "1GB"], "are for --to transformers"),
        (["theirs", "out", "--to", "native", "--model-type", "llama"], "are for --to transformers"),
    ],
)
def test_what_cannot_be_converted(command, here, theirs, arguments, message):
    (here / "full").mkdir()
    (here / "full/notes.txt").write_text("mine")
    assert message in refused(command, here, "convert", *arguments)


def test_an_architecture_that_nobody_knows(command, here, theirs):
    values = {**json.loads((theirs / "config.json").read_text()), "model_type": "lamma"}
    (theirs / "config.json").write_text(json.dumps(values))
    line = refused(command, here, "convert", "theirs", "out")
    assert "`model_type` 'lamma' is not supported. Did you mean `llama`?" in line


def test_a_pickle_is_never_opened(command, here, theirs):
    (theirs / "model.safetensors").rename(theirs / "pytorch_model.bin")
    assert "is a pickle" in refused(command, here, "convert", "theirs", "out")


def test_a_model_that_no_architecture_expresses(command, here):
    odd = LLAMA.edit("blocks.1.attention", sinks=ef.Normal(0.1))
    ef.save(filled(odd), here / "odd")
    line = refused(command, here, "convert", "odd", "out")
    assert "No architecture of transformers expresses this model" in line
    assert "The closest is llama, but that this model has: blocks.1.attention.sinks: Normal" in line
    assert command("convert", "odd", "out", "--to", "native")[0] == 0
