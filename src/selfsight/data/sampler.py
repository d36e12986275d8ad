"""Which images make up an update: keyed orders with drop-last, the same for any number of processes.

Update ``k`` takes the ``k mod s``-th batch of round ``k div s``, ``s`` updates a round; a round is an epoch unless a
recipe asks for another order than a permutation of all images (``data.order``). Its batch is cut into ``accumulate``
micro-batches, each micro-batch into one part for each rank, in rank order: so the parts of all ranks joined are the
micro-batch of one process, and all micro-batches joined the batch without accumulation. Nothing is drawn in turn, so
starting at any update is exact.
"""

import numpy as np
from jaxtyping import Int

from selfsight.data.order import SHUFFLED, Order
from selfsight.data.protocol import DataError


class Sampler:
    """The positions that ``rank`` of ``world`` takes of each micro-batch; ``batch_size`` counts over all ranks.

    An epoch is as many updates as the order says: as ``n`` images fill, unless these are of two kinds.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        order: Order = SHUFFLED,
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
        if batch_size > order.length(n):
            raise DataError(
                f"batch size {batch_size} is larger than what a round shows, {order.length(n)} images; "
                "use a smaller --batch-size or a larger window"
            )
        self.n, self.batch_size, self.seed, self.order = n, batch_size, seed, order
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.steps_per_epoch, self.share = order.updates(n, batch_size), batch_size // parts
        self.steps_per_round = order.length(n) // batch_size
        self._round, self._positions = -1, np.zeros(0, dtype=np.int64)

    def round(self, step: int) -> int:
        """The round of update ``step``: what the views of its images are keyed by."""
        return step // self.steps_per_round

    def micro(self, step: int, micro: int) -> tuple[Int[np.ndarray, " b"], int]:
        """This rank's positions in micro-batch ``micro`` of update ``step``, and the round."""
        now, within = divmod(step, self.steps_per_round)
        if now != self._round:
            self._round, self._positions = now, self.order(self.n, seed=self.seed, round=now)
        start = within * self.batch_size + (micro * self.world + self.rank) * self.share
        return self._positions[start : start + self.share], now


def shard(n: int, *, rank: int, world: int) -> range:
    """This rank's contiguous share of ``n`` positions; shares differ by at most one.

    >>> [list(shard(5, rank=r, world=2)) for r in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(rank * n // world, (rank + 1) * n // world)
