"""BLEU, by the package sacrebleu."""

from collections.abc import Sequence
from types import ModuleType


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus with one reference each, from 0 to 100 (Papineni et al. 2002).

    Words are what stands between spaces: the texts are taken as they are, as by `multi-bleu.perl`
    or `sacrebleu --tokenize none`. Needs `pip install 'eqxformer[evaluate]'`.

    Arguments:
        translations, references: the same number of texts, in the same order.

    Raises `ValueError` for different numbers of texts, or none.

    Example:
        >>> import eqxformer as ef
        >>> round(ef.bleu(["a man is riding a bike ."], ["a man is riding a horse ."]), 1)
        64.3
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            "`translations` and `references` must be as many, and some; got "
            f"{len(translations):,} and {len(references):,}."
        )
    found = scorer().corpus_bleu(
        list(translations), [list(references)], tokenize="none", force=True
    )
    return float(found.score)


def scorer() -> ModuleType:
    """The package. Raises `ImportError` that says what to install, to be asked before training."""
    try:
        import sacrebleu
    except ImportError:
        raise ImportError("BLEU needs sacrebleu: pip install 'eqxformer[evaluate]'.") from None
    return sacrebleu
