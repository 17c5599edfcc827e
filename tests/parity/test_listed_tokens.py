"""Tokens that files beside `tokenizer.json` list, and tokenizers without it, as in transformers."""

import json

import pytest
import tokenizers
import transformers as hf

import eqxformer as ef

WORDS = ["<unk>", "a", "b", "<", "m", ">", "<m>", "[", "P", "]", "x", "y"]
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = [
    "a <m> b",
    "a<x> b<y>a",
    "a [P] b xyx",
    "<x ><y>[y]<m>",
    "xx xyx a<m>b",
    "  <x>  a",
    "A <X>",
]


def listed(content, **flags):
    """A token as `tokenizer_config.json` has it."""
    usual = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **usual, "special": True, **flags}


# What lies beside a tokenizer, by the names of the files, and what it holds itself.
BESIDE = {
    "listed by id": (
        {
            "added_tokens_decoder": {
                "13": listed("<y>", special=False, normalized=True),
                "12": listed("<x>", lstrip=True),
            }
        },
        {},
        {},
        [],
    ),
    "a word that is split": ({"added_tokens_decoder": {"6": listed("<m>")}}, {}, {}, []),
    "other flags": (
        {"added_tokens_decoder": {"12": listed("<x>", rstrip=True)}},
        {},
        {},
        ["<x>"],
    ),
    "named": (
        {
            "added_tokens_decoder": {"12": listed("<x>", special=False)},
            "add_bos_token": True,
            "eos_token": "<x>",
            "extra_special_tokens": ["xx"],
            "image_token": "<y>",
            "mask_token": {**listed("<m>", lstrip=True), "__type": "AddedToken"},
            "pad_token": "[P]",
        },
        {},
        {},
        [],
    ),
    "named in a dictionary": ({"extra_special_tokens": {"image_token": "<x>"}}, {}, {}, []),
    "named alone": ({}, {"bos_token": listed("<x>", rstrip=True)}, {}, []),
    "old": (
        {"pad_token": "[P]"},
        {"eos_token": "<m>", "mask_token": "<x>"},
        {"<x>": 12, "<y>": 13, "xyx": 14},
        [],
    ),
    "old, known": ({}, {"eos_token": "<m>"}, {"<x>": 12}, ["<x>"]),
    "old, beside a list": (
        {"added_tokens_decoder": {}},
        {"eos_token": "<m>"},
        {"<x>": 12},
        [],
    ),
    "nothing": ({}, {}, {}, []),
}


def write(folder, config, special, added, own):
    """A tokenizer with tokens of its `own`, and the files beside it."""
    words = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_tokens([tokenizers.AddedToken(each, lstrip=True) for each in own])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CLASS | config))
    for name, values in (("special_tokens_map", special), ("added_tokens", added)):
        if values:
            (folder / f"{name}.json").write_text(json.dumps(values))


@pytest.mark.parametrize("beside", BESIDE.values(), ids=list(BESIDE))
def test_tokens_that_are_listed_beside_a_tokenizer_are_found_whole(beside, tmp_path):
    write(tmp_path, *beside)
    ours = ef.load_tokenizer(tmp_path)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    known = theirs.backend_tokenizer.get_added_tokens_decoder()
    found = ours.get_added_tokens_decoder()
    assert {i: repr(t) for i, t in found.items()} == {i: repr(t) for i, t in known.items()}
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (
            ({"added_tokens_decoder": {"15": listed("<x>")}}, {}, {}, []),
            "'<x>' must have the id 15",
        ),
        (({}, {}, {"<x>": 12, "<y>": 15}, []), "'<y>' must have the id 15"),
        (({"added_tokens_decoder": {"6": listed("<x>")}}, {}, {}, []), "'<x>' must have the id 6"),
        (({"added_tokens_decoder": ["<x>"]}, {}, {}, []), "must have tokens by their ids"),
        (({"added_tokens_decoder": {"x": listed("<x>")}}, {}, {}, []), "by their ids"),
        (({"added_tokens_decoder": {"12": {"lstrip": True}}}, {}, {}, []), "a token must be text"),
        (({"added_tokens_decoder": {"12": listed("<x>", special=1)}}, {}, {}, []), "must be text"),
        (({}, {}, {"<x>": "12"}, []), "the id of '<x>' must be a whole number"),
        (({"extra_special_tokens": "<x>"}, {}, {}, []), "must be a list"),
    ],
)
def test_lists_that_do_not_fit_a_tokenizer_are_refused(beside, message, tmp_path):
    write(tmp_path, *beside)
    with pytest.raises(ef.CheckpointError) as caught:
        ef.load_tokenizer(tmp_path)
    assert message in str(caught.value)


def words_of_bert(folder):
    """A `vocab.txt`."""
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')


def pieces_of_gpt2(folder):
    """A `vocab.json` and a `merges.txt`."""
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


@pytest.mark.parametrize("files", [words_of_bert, pieces_of_gpt2])
def test_what_an_error_says_of_other_files_of_a_tokenizer_is_true(files, tmp_path):
    files(tmp_path)
    with pytest.raises(ef.CheckpointError, match="transformers converts it: AutoTokenizer"):
        ef.load_tokenizer(tmp_path)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert ef.load_tokenizer(tmp_path).encode("a ab").ids == theirs.encode("a ab")
