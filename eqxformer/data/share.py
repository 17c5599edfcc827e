"""The part of every batch that one of several processes makes."""

from eqxformer.config import Config


class Share(Config):
    """The part of a batch that falls to process `index` of `count`: rows that lie side by side.

    The parts, in the order of the processes, are the batch that a single process would make, so
    that a run may go on with another number of them.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> windows = ef.Epochs(length=4, batch=6)
        >>> batches = windows.build(np.arange(100), share=ef.Share(index=1, count=3))
        >>> batches(0).tokens.shape
        (2, 5)
    """

    index: int = 0
    count: int = 1

    def check(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"`index` must be from 0 to below `count`; got index={self.index}, "
                f"count={self.count}."
            )

    @classmethod
    def of_this_process(cls) -> "Share":
        """The share of this one of the processes that `jax.distributed` has joined."""
        import jax

        return cls(jax.process_index(), jax.process_count())

    def rows(self, batch: int) -> slice:
        """Which rows of a batch these are. Raises `ValueError` for one that cannot be shared."""
        if batch % self.count:
            raise ValueError(
                f"`batch` must be a multiple of the {self.count} processes that share it; "
                f"got {batch}."
            )
        each = batch // self.count
        return slice(self.index * each, (self.index + 1) * each)
