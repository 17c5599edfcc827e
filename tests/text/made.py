"""Tokenizers of every kind, made on the spot."""

import functools

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "the quick brown fox isn't there, is it? It's lazy!  two  spaces",
    "你好，世界。今天天气很好。 日本語も少し",
    "😀 smiling 👩‍👩‍👧 family 🏳️‍🌈 é è ü ß naïve café",
    "def f(x):\n\treturn x + 1\n\n\nthe end. the end. do not 'go'",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = sorted({letter for line in TEXT for letter in line if letter != " "})
UNDONE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
QUIET = {"show_progress": False, "special_tokens": ["<s>", "</s>"]}


def trained(model, trainer, before, decoder):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoder
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level():
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=letters, **QUIET)
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = trained(models.BPE(), trainer, before, decoders.ByteLevel())
    # An added token may be letters of bytes, which it is then read as, or something else.
    plain = ["<think>", "with space", "你们"]
    tokenizer.add_tokens([AddedToken(text, special=False) for text in plain])
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece(decoder, byte_fallback=True):
    """The vocabulary of a sentencepiece model: bytes, letters, pieces of words."""
    words = [*LETTERS, "▁", "▁▁", "▁▁▁", "▁the", "the", "▁end", "is", "▁你", "好", "▁t", "he", "▁."]
    vocab = ["<unk>", "<s>", "</s>", *(BYTES if byte_fallback else ()), *dict.fromkeys(words)]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("h", "e"), ("i", "s")]
    vocab = list(dict.fromkeys([*vocab, *("".join(pair) for pair in merges)]))
    ids = {token: number for number, token in enumerate(vocab)}
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **QUIET | UNKNOWN)
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def wordpiece(cleanup):
    trainer = trainers.WordPieceTrainer(vocab_size=200, **QUIET | UNKNOWN)
    decoder = decoders.WordPiece(cleanup=cleanup)
    model = models.WordPiece(unk_token="<unk>")
    return trained(model, trainer, pre_tokenizers.BertPreTokenizer(), decoder)


def word_ends():
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", **QUIET | UNKNOWN)
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    return trained(model, trainer, pre_tokenizers.Whitespace(), decoders.BPEDecoder())


def letters(decoder):
    vocab = {letter: number for number, letter in enumerate(["<unk>", " ", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def only_bytes():
    """As ByT5: three special tokens, then the bytes."""
    vocab = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<hole>"])
    return tokenizer


def sequence(*parts):
    return decoders.Sequence(list(parts))


UNKNOWN = {"special_tokens": ["<unk>", "<s>", "</s>"]}
MAKERS = {
    "byte level": byte_level,
    "llama": lambda: sentencepiece(sequence(*UNDONE, decoders.Strip(" ", 1, 0))),
    "two spaces": lambda: sentencepiece(sequence(*UNDONE, decoders.Strip(" ", 2, 0))),
    "gemma": lambda: sentencepiece(sequence(*UNDONE)),
    "metaspace": lambda: sentencepiece(decoders.Metaspace(), byte_fallback=False),
    "bytes then metaspace": lambda: sentencepiece(
        sequence(decoders.ByteFallback(), sequence(decoders.Metaspace()))
    ),
    "never": lambda: sentencepiece(decoders.Metaspace(prepend_scheme="never"), byte_fallback=False),
    "unigram": unigram,
    "word pieces": lambda: wordpiece(True),
    "word pieces as they are": lambda: wordpiece(False),
    "word ends": word_ends,
    "letters": lambda: letters(decoders.Fuse()),
    "letters with spaces": lambda: letters(None),
    "strip": lambda: letters(sequence(decoders.Strip("e", 1, 0), decoders.Replace("t", "TT"))),
    "only bytes": only_bytes,
}


class Own:
    """A decoder of one's own."""

    def decode_chain(self, tokens):
        return [token.upper() for token in reversed(tokens)]


# Their text is sure at the end only, and their tokens have no bytes.
LATE = {
    "ctc": lambda: letters(decoders.CTC(pad_token="e", word_delimiter_token="t")),
    "end": lambda: letters(sequence(decoders.Fuse(), decoders.Replace("ee", "E"))),
    "own": lambda: letters(decoders.Decoder.custom(Own())),
    "twice": lambda: sentencepiece(sequence(decoders.ByteFallback(), decoders.ByteLevel())),
    "bytes then words": lambda: sentencepiece(
        sequence(decoders.ByteFallback(), decoders.WordPiece())
    ),
}


@functools.cache
def tokenizer_of(kind):
    return (MAKERS | LATE)[kind]()


def size_of(tokenizer):
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
