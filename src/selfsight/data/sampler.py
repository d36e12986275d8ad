"""Which images make up an update: keyed permutations with drop-last, the same for any number of processes.

Update ``k`` takes the ``k mod s``-th batch of epoch ``k div s``'s permutation, ``s`` updates an epoch. Its batch is cut
into ``accumulate`` micro-batches, each micro-batch into one part for each rank, in rank order: so the parts of all
ranks joined are the micro-batch of one process, and all micro-batches joined the batch without accumulation. Nothing
is drawn in turn, so starting at any update is exact.
"""

import numpy as np
from jaxtyping import Int

from selfsight.data.protocol import DataError
from selfsight.keyed import permutation


class Sampler:
    """The positions that ``rank`` of ``world`` takes of each micro-batch; ``batch_size`` counts over all ranks."""

    def __init__(
        self, n: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        parts = accumulate * world
        if batch_size < 1 or batch_size % parts:
            near = max(parts, round(batch_size / parts) * parts)
            raise DataError(
                f"batch size {batch_size} cannot be divided among {accumulate} micro-batches on {world} processes;"
                f" use --batch-size {near}"
            )
        if batch_size > n:
            most = n // parts * parts
            remedy = f"use --batch-size {most} or less" if most else "use fewer processes or more images"
            raise DataError(f"batch size {batch_size} is larger than the data, {n} images; {remedy}")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.steps_per_epoch, self.share = n // batch_size, batch_size // parts
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def micro(self, step: int, micro: int) -> tuple[Int[np.ndarray, " b"], int]:
        """This rank's positions in micro-batch ``micro`` of update ``step``, and the epoch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.n, seed=self.seed, epoch=epoch)
        start = within * self.batch_size + (micro * self.world + self.rank) * self.share
        return self._order[start : start + self.share], epoch


def shard(n: int, *, rank: int, world: int) -> range:
    """This rank's contiguous share of ``n`` positions; shares differ by at most one.

    >>> [list(shard(5, rank=r, world=2)) for r in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(rank * n // world, (rank + 1) * n // world)
