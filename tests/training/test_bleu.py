import collections
import math
import sys

import pytest

from eqxformer.training.bleu import bleu

ANSWERS = [
    "ein mann fährt mit einem fahrrad durch die stadt .",
    "zwei hunde , die im schnee spielen",
    "eine frau liest ein buch in einem park .",
]
REFERENCES = [
    "ein mann fährt mit dem fahrrad durch die straßen der stadt .",
    "zwei hunde spielen im schnee .",
    "eine frau liest in einem park ein buch .",
]


def twin(answers, references):
    """BLEU as in the paper: clipped n-gram precisions of the corpus, and a penalty for brevity."""
    right, all_of, lengths = [0] * 4, [0] * 4, [0, 0]
    for answer, reference in zip(answers, references, strict=True):
        words = answer.split(" "), reference.split(" ")
        lengths = [total + len(side) for total, side in zip(lengths, words, strict=True)]
        for n in range(4):
            grams = [
                collections.Counter(tuple(side[i : i + n + 1]) for i in range(len(side) - n))
                for side in words
            ]
            right[n] += sum((grams[0] & grams[1]).values())
            all_of[n] += sum(grams[0].values())
    precision = sum(math.log(r / a) for r, a in zip(right, all_of, strict=True)) / 4
    return 100 * math.exp(precision + min(0.0, 1 - lengths[1] / lengths[0]))


def test_bleu_is_that_of_the_paper():
    assert bleu(ANSWERS, REFERENCES) == pytest.approx(twin(ANSWERS, REFERENCES), abs=1e-9)
    short = [" ".join(answer.split()[:-1]) for answer in REFERENCES]
    assert bleu(short, REFERENCES) == pytest.approx(twin(short, REFERENCES), abs=1e-9)


def test_texts_are_taken_as_they_are():
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(100.0)
    glued = [text.replace(" .", ".") for text in REFERENCES]
    assert bleu(glued, REFERENCES) == pytest.approx(twin(glued, REFERENCES), abs=1e-9) != 100.0
    upper = [text.upper() for text in REFERENCES]
    assert bleu(upper, REFERENCES) < 5.0


@pytest.mark.parametrize("answers", [[], ANSWERS])
def test_texts_and_references_are_as_many(answers):
    with pytest.raises(ValueError, match=f"got {len(answers)} and {len(answers[1:])}"):
        bleu(answers, answers[1:])


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install 'eqxformer\[evaluate\]'"):
        bleu(ANSWERS, REFERENCES)
