"""Tiny parallel text: sentences of a toy English, and a toy German word by word."""

import random

WORDS = {
    "a": "ein",
    "the": "der",
    "dog": "hund",
    "cat": "kater",
    "runs": "läuft",
    "sleeps": "schläft",
    "big": "große",
    "small": "kleine",
    ".": ".",
}


def sentences(count, *, longest=3, seed=0):
    """Pairs of sentences with up to `longest` adjectives."""
    drawn = random.Random(seed)

    def sentence():
        adjectives = [drawn.choice(["big", "small"]) for _ in range(drawn.randint(0, longest))]
        verb = drawn.choice(["runs", "sleeps"])
        words = [drawn.choice(["a", "the"]), *adjectives, drawn.choice(["dog", "cat"]), verb, "."]
        return " ".join(words), " ".join(WORDS[word] for word in words)

    return [sentence() for _ in range(count)]


def write_directory(folder, counts, **options):
    """`train.en`, `train.de` and so on, with so many pairs each."""
    folder.mkdir(exist_ok=True)
    for seed, (name, count) in enumerate(counts.items()):
        pairs = sentences(count, seed=seed, **options)
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder
