r"""Jigsaw puzzles: say by which of many permutations the tiles of an image were shuffled.

Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016,
arXiv 1603.09246.

**Idea.** An image is cut into nine tiles, these are shuffled by one of a fixed set of permutations, and a classifier
says by which. The network is free of context: each tile is encoded by itself, and only the last layers see all nine, so
that the features must tell what part of what a tile shows. A large distance between any two permutations of the set
keeps a puzzle from hanging on two tiles that look alike.

**Equation.** With tiles :math:`t_1 \dots t_9`, the permutation :math:`\pi_k` that was drawn, which puts tile
:math:`\pi_k(s)` into slot :math:`s`, and encodings :math:`h`,

.. math:: L = \mathrm{CE}\big(F([h(t_{\pi_k(1)}), \dots, h(t_{\pi_k(9)})]),\, k\big) .

**Shortcuts** would solve puzzles without recognising anything, so the views (``selfsight.views.puzzles``) take them
away: each tile comes from a random place in its cell, so that edges do not go on; each tile's own mean and deviation
are taken out; a share of the puzzles is grey as a whole, and in those with colours the channels are moved apart, so
that a lens's fringes do not tell how far from the middle a tile was.

**Differences** between the paper, the official code (MehdiNoroozi/JigsawPuzzleSolver), facebookresearch/vissl and this
file:

- The permutations are chosen for the greatest least distance, and only then for the greatest mean that the paper's
  algorithm takes: it leaves pairs that differ in two or three places (``selfsight.parts.permutations``). The table is
  a buffer, since classes are its rows' numbers.
- A tile is encoded before it is put into its slot, which is the same, and lets one image give several puzzles.
- The code has each tile's normalisation by its deviation commented out; the paper has it, and so has this file.
- Paper and code train a CaffeNet with a smaller first stride than it has when it is evaluated, and a layer of 512
  (paper) or 1024 (code) units on top. Here any encoder serves, and the layer follows its pooled feature, with vissl's
  batch norm in the place of dropout.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Puzzles
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class Jigsaw(Method[Puzzles]):
    """Jigsaw puzzles; ``reduce`` maps one tile's feature, ``solve`` those of all slots to a logit a permutation."""

    permutations: Int[Tensor, "k n"]

    def __init__(
        self, encoder: Encoder, reduce: nn.Module, solve: nn.Module, *, permutations: Int[Tensor, "k n"]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.reduce = reduce
        self.solve = solve
        self.register_buffer("permutations", permutations.clone())

    def step(self, batch: Puzzles, clock: Clock) -> Steps:
        h = self.encoder(batch.x.flatten(0, 1))
        tiles = self.reduce(h).unflatten(0, batch.x.shape[:2])
        logits = full(self.solve(self.slots(tiles, batch.label).flatten(1)))
        label = batch.label.flatten()
        accuracy = (logits.detach().argmax(dim=1) == label).float().mean()
        feature = h.detach().view(*batch.x.shape[:2], -1).mean(dim=1)
        yield Objective(cross_entropy(logits, label), log={"puzzle_accuracy": accuracy}, watch={"feature": feature})

    def slots(self, tiles: Float[Tensor, "b n d"], label: Int[Tensor, "b puzzles"]) -> Float[Tensor, "m n d"]:
        """The tiles of each puzzle in their slots, image by image."""
        sample = torch.arange(len(tiles), device=tiles.device)[:, None, None]
        return tiles[sample, self.permutations[label]].flatten(0, 1)
