"""What holds the methods without negatives up: each trained shortly on the world, whole and with one support gone."""

import pytest
import rig
import torch
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.losses.similarity import negative_cosine
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.recipes.recipe import Recipe


class Siamese(Method[TwoViews]):
    """SimSiam's step with its supports to choose; a class of its own, since the published method has no such switch."""

    def __init__(self, of: Method[TwoViews], *, stop: bool, predictor: bool) -> None:
        super().__init__()
        self.encoder, self.projector = of.encoder, of.projector
        self.predictor = of.predictor if predictor else nn.Identity()
        self.stop = stop

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        z1, z2 = (self.projector(self.encoder(x)) for x in (batch.x1, batch.x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.stop else (z1, z2)
        yield Objective((negative_cosine(p1, t2) + negative_cosine(p2, t1)) / 2)
