"""BERT's noise: some tokens of a row are hidden, and those alone are asked for."""

import numpy as np

from eqxformer.data.corruption import Corruption, Real, Rows, real_places
from eqxformer.data.labelled import LabelledBatch


class MaskTokens(Corruption):
    """A share of the tokens hidden: most behind a mask, some behind any token, some not at all.

    Devlin et al. 2019, section 3.1: 15% of the tokens are chosen, and of these 80% become the mask,
    10% any token of the vocabulary, and 10% stay what they are. As there, every row has the same
    share: `round(share * tokens)`, at least 1.

    Arguments:
        mask: the id that stands for a hidden token.
        vocab: ids from 0 to this, which is excluded, stand in for those that become any token.
        share: of the real tokens of a row are chosen.
        masked, replaced: of the chosen become the mask, and any token.
        special: ids that are never chosen, such as those at the ends of a text.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> rows = np.arange(20).reshape(1, 20)
        >>> batch = ef.MaskTokens(mask=99, vocab=99)(rows, random=np.random.default_rng(0))
        >>> batch.tokens[batch.weights].tolist(), batch.labels[batch.weights].tolist()
        ([99, 99, 99], [3, 11, 13])
    """

    mask: int
    vocab: int
    share: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1
    special: tuple[int, ...] = ()

    def check(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"`share` must be above 0 and at most 1; got {self.share}.")
        if min(self.masked, self.replaced) < 0.0 or self.masked + self.replaced > 1.0 + 1e-9:
            raise ValueError(
                "`masked` and `replaced` must be shares of the chosen tokens, 1 together at most; "
                f"got {self.masked} and {self.replaced}."
            )
        if self.mask < 0 or self.vocab < 1:
            raise ValueError(
                f"`mask` must be an id, and `vocab` at least 1; got {self.mask} and {self.vocab}."
            )

    def __call__(
        self, tokens: Rows, valid: Real | None = None, *, random: np.random.Generator
    ) -> LabelledBatch:
        """A batch with these rows corrupted and as labels, weighted 1 where tokens were chosen."""
        tokens = np.asarray(tokens, np.int32)  # ids of bytes may have no room for the mask
        candidates = real_places(tokens, valid) & ~np.isin(tokens, self.special)
        among = candidates.sum(axis=1)
        count = np.minimum(np.maximum(np.round(self.share * among), 1), among)
        # The candidates in random order, the others behind them.
        order = np.argsort(np.where(candidates, random.random(tokens.shape), 2.0), axis=1)
        chosen = np.empty(tokens.shape, bool)
        first = np.arange(tokens.shape[1])[None] < count[:, None]
        np.put_along_axis(chosen, order, first, axis=1)
        fate = random.random(tokens.shape)
        anything = random.integers(0, self.vocab, tokens.shape)
        hidden = np.where(fate < self.masked + self.replaced, anything, tokens)
        hidden = np.where(fate < self.masked, self.mask, hidden)
        corrupted = np.where(chosen, hidden, tokens).astype(tokens.dtype)
        return LabelledBatch(corrupted, tokens, chosen, valid)
