"""Two answers to each prompt, one of which people liked better."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from eqxformer.data.batches import PairBatch, TokenBatch

LogProbabilities = Float[Array, "*batch"] | Float[np.ndarray, "*batch"]


class PreferenceBatch(eqx.Module):
    """Answers that were liked better and worse, row by row, each behind its prompt.

    Arguments:
        chosen, rejected: prompts and answers, of any two lengths. The weights are 1 for tokens of
            the answer, and 0 for those of the prompt and for padding.
        chosen_reference, rejected_reference: what a reference model gives the answers, as
            `DirectPreference().with_reference(batch, reference)` fills it in.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> answer = np.array([[False, False, True, True]])  # behind a prompt of two tokens
        >>> better = ef.TokenBatch(np.array([[5, 6, 7, 8]]), weights=answer)
        >>> worse = ef.TokenBatch(np.array([[5, 6, 9, 9]]), weights=answer)
        >>> ef.PreferenceBatch(chosen=better, rejected=worse).token_count
        6
    """

    chosen: TokenBatch | PairBatch
    rejected: TokenBatch | PairBatch
    chosen_reference: LogProbabilities | None = None
    rejected_reference: LogProbabilities | None = None

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return self.chosen.token_count + self.rejected.token_count
