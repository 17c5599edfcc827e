"""`eqxformer info`: what is said of checkpoints of either format, of presets, and of mistakes."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

import eqxformer as ef
from eqxformer.checkpoints.tensor_files import TensorFiles
from eqxformer.inspect.table import size
from tests.cli.test_mistakes import refused
from tests.helpers.models import filled

GOLDEN = Path(__file__).parent.parent / "golden"
LLAMA = ef.families.llama(vocab=11, dim=12, layers=2, heads=3, kv_heads=1, hidden=14)


@pytest.fixture
def unread(monkeypatch):
    """No tensor may be read."""

    def read(files, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(TensorFiles, "read", read)


def said(out, about):
    """What the output says about something, in the list below the table."""
    (found,) = re.findall(rf"^{about}  +(.*)$", out, re.MULTILINE)
    return found


def test_a_preset_is_described_with_its_parameters_and_memory(command):
    code, out, err = command("info", "qwen3-0.6b")
    assert (code, err) == (0, "")
    assert out.startswith("Qwen3ForCausalLM (qwen3). Qwen3: Llama with an RMS norm on every query")
    assert re.search(r"^blocks\.0\.\.27 +28 x Block +440,466,432 +1\.8 GB$", out, re.MULTILINE)
    assert re.search(
        r"^  attention\.query\.weight +dim=1024 heads\*head_dim=2048 +Linear ", out, re.MULTILINE
    )
    assert said(out, "model") == "DecoderLM of 28 blocks, width 1,024, 151,936 tokens"
    assert said(out, "parameters") == "596,049,920"
    assert said(out, "weights") == "2.4 GB in float32, 1.2 GB in bfloat16"
    # Keys and values of 28 layers, 8 heads of 128 numbers, 2 bytes each.
    each = 2 * 28 * 8 * 128 * 2
    expected = f"{size(each)} a token in bfloat16, {size(8192 * each)} for 8,192"
    assert said(out, "KV cache") == expected
    assert said(out, "training").startswith("9.5 GB with AdamW in float32")


def test_the_parts_of_a_preset_are_shown_with_what_goes_in_and_out(command):
    _, out, _ = command("info", "deepseek-v3", "--shapes", "--batch", 2, "--length", 4096)
    assert re.search(
        r"^  blocks\.3\.\.60 +Block +f32\[2,4096,7168\] +f32\[2,4096,7168\] +667,422,603,776$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^ +DecoderLM +i32\[2,4096\] +f32\[2,4096,129280\] +671,", out, re.MULTILINE)


def test_settings_and_parts_cannot_be_shown_at_once(command, here):
    assert "two answers" in refused(command, here, "info", "gpt2", "--config", "--shapes")


def test_a_window_bounds_the_cache(command):
    _, out, _ = command("info", "mistral-7b-v0.1", "--depth", 1)
    each = 2 * 32 * 8 * 128 * 2
    expected = f"{size(each)} a token in bfloat16, {size(4096 * each)} for 8,192"
    assert said(out, "KV cache") == expected


def test_an_encoder_decoder_remembers_its_source_as_well(command):
    _, out, _ = command("info", "t5-small", "--depth", 1)
    assert said(out, "model").startswith("EncoderDecoder: Encoder of 6 blocks, width 512")
    each = size(2 * 6 * 8 * 64 * 2)
    assert said(out, "KV cache").startswith(f"{each} a token in bfloat16")
    assert said(out, "KV cache").endswith(f"; {each} a token of the source")


def test_of_both_sides_with_labels_each_side_is_named(command, unread):
    code, out, err = command("info", GOLDEN / "bart-sequence")
    assert (code, err) == (0, "")
    assert out.startswith("BartForSequenceClassification (bart). BART: ")
    assert re.search(r"^head\.linear\.weight +dim=48 labels=3 ", out, re.MULTILINE)
    sides = "Encoder of 1 block, width 48, 50 tokens; DecoderLM of 1 block, width 48, 50 tokens"
    assert said(out, "model") == f"EncoderDecoderWithHead: {sides}"
    assert "KV cache" not in out


def test_an_encoder_of_audio_has_no_tokens(command):
    _, out, _ = command("info", "whisper-tiny", "--depth", 1)
    sides = "AudioEncoder of 4 blocks, width 384; DecoderLM of 4 blocks, width 384, 51,865 tokens"
    assert said(out, "model") == f"EncoderDecoder: {sides}"


def test_a_checkpoint_is_described_from_its_headers_alone(command, unread):
    code, out, err = command("info", GOLDEN / "bert")
    assert (code, err) == (0, "")
    assert out.startswith("BertModel (bert). BERT: ")
    number = ef.count(ef.shapes(ef.pretrained.Checkpoint(GOLDEN / "bert").config))
    assert said(out, "parameters") == f"{number:,}"
    assert said(out, "on disk") == f"{size(4 * number)} in float32"
    assert "KV cache" not in out


def test_a_model_in_our_own_format_is_described_from_its_headers_alone(command, here, unread):
    ef.save(filled(LLAMA), here / "mine")
    code, out, err = command("info", "mine")
    assert (code, err) == (0, "")
    assert out.startswith("DecoderLM: A decoder: ")
    assert said(out, "model") == "DecoderLM of 2 blocks, width 12, 11 tokens"


def test_types_on_disk_are_all_named(command, here):
    model = ef.from_pretrained(GOLDEN / "llama", dtype="bfloat16")
    ef.save_pretrained(model, here / "half")
    assert said(command("info", "half")[1], "on disk").endswith(" in bfloat16")


def test_the_config_tree_is_shown_instead_of_the_table(command):
    code, out, _ = command("info", "gpt2", "--config")
    assert code == 0
    assert ef.preset("gpt2").in_full() in out
    assert "softcap=None" in out  # what is as usual too
    assert "blocks.0..11" not in out
    assert said(out, "parameters") == "124,439,808"


def test_a_depth_folds_the_table(command):
    _, out, _ = command("info", "gpt2", "--depth", 1)
    rows = out.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in rows] == ["embedding", "blocks", "norm", "total"]
    assert rows[-1].split()[1] == "124,439,808"


def test_presets_are_listed_with_their_numbers(command):
    code, out, _ = command("info", "--presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ef.preset_names()
    assert re.search(r"^gpt2 +124,439,808$", out, re.MULTILINE)


def test_of_a_model_on_the_hub_only_the_settings_are_downloaded(command, tmp_path, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        values = {**ef.pretrained.presets.preset_of("gpt2").settings, "n_layer": 3}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return str(tmp_path)

    errors = ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError")
    hub = types.SimpleNamespace(snapshot_download=download)
    raised = types.SimpleNamespace(**dict.fromkeys(errors, OSError))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", raised)
    code, out, err = command("info", "someone/gpt-small")
    assert (code, err) == (0, "")
    assert said(out, "model") == "DecoderLM of 3 blocks, width 768, 50,257 tokens"
    ((name, patterns),) = asked
    assert name == "someone/gpt-small"
    assert not any("safetensors" in pattern for pattern in patterns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'SOURCE'; see eqxformer info --help"),
        (["missing"], "There is no directory missing. There is no preset `missing`"),
        (["qwen3-0.6"], "Did you mean `qwen3-0.6b`"),
        (["./missing/no"], "There is no directory missing/no"),
        (["../text.txt"], "text.txt is a file; a checkpoint is the directory it lies in"),
        (["."], "There is no config.json in .; is it a checkpoint's directory?"),
        (["gpt2", "--depth", "0"], "0 is not in the range x>=1"),
    ],
)
def test_nothing_to_describe(command, here, arguments, message):
    assert message in refused(command, here, "info", *arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "lama"}, "`model_type` 'lama' is not supported. Did you mean `llama`?"),
        ({"model_type": "llama", "hidden_sise": 8}, "lacks `num_attention_heads`"),
        ({"no": "type"}, "lacks `model_type`, which says what the checkpoint is"),
        ({"format": "eqxformer"}, "was not written by eqxformer's `save`"),
    ],
)
def test_settings_that_describe_nothing(command, here, settings, message):
    ef.save_pretrained(filled(LLAMA), here / "broken")
    (here / "broken/config.json").write_text(json.dumps(settings))
    assert message in refused(command, here, "info", "broken")


def test_a_pickle_is_never_opened(command, here):
    (here / "old").mkdir()
    config = (GOLDEN / "llama/config.json").read_text()
    (here / "old/config.json").write_text(config)
    (here / "old/pytorch_model.bin").write_bytes(b"never opened")
    line = refused(command, here, "info", "old")
    assert "'pytorch_model.bin' is a pickle, which can run code and is never opened" in line


def test_tensors_that_do_not_fit_are_named_on_one_line(command, here):
    ef.save_pretrained(filled(LLAMA), here / "broken")
    values = json.loads((here / "broken/config.json").read_text())
    (here / "broken/config.json").write_text(json.dumps({**values, "vocab_size": 12}))
    line = refused(command, here, "info", "broken")
    assert "shape: model.embed_tokens.weight is (11, 12), expected (12, 12)" in line


def test_a_torn_native_checkpoint_is_named_on_one_line(command, here):
    ef.save(filled(LLAMA), here / "mine")
    whole = (here / "mine/model.safetensors").read_bytes()
    (here / "mine/model.safetensors").write_bytes(whole[:-1])
    assert "is not a whole safetensors file" in refused(command, here, "info", "mine")


def test_a_mesh_is_reckoned_with_on_paper(command):
    arguments = ("gpt2", "--depth", 1, "--mesh", "tensor=2,fsdp=64", "--batch", 64, "--length", 512)
    code, out, err = command("info", *arguments)
    assert (code, err) == (0, "")
    report = out[out.index("A step of") :]
    assert report.startswith("A step of 64 rows of 512 tokens on fsdp=64,tensor=2, 128 devices.\n")
    assert re.search(r"^    weights +[\d.]+ MB$", report, re.MULTILINE)
    assert re.search(r"^blocks +12 x Block +several ", out, re.MULTILINE)
    assert re.search(r"^  on each device +", out, re.MULTILINE)
    assert re.search(r"^  sent in a step +[\d.]+ MB$", report, re.MULTILINE)
    assert "Not cut: embedding.tokens.weight: vocab=50257 is not a multiple of tensor=2." in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh", "fsdp=8", "--batch", "12"), "multiple of fsdp=8, which they are dealt out to"),
        (("--mesh", "fsdp=8,tensr=2"), "no axis `tensr`. Did you mean `tensor`?"),
        (("--mesh", "fsdp"), "A mesh must look like fsdp=4,tensor=2"),
        (("--length", "512"), "--batch and --length are for --shapes, or a step on a --mesh"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_refused(command, here, arguments, message):
    assert message in refused(command, here, "info", "gpt2", *arguments)
