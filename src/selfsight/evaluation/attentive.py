r"""``attentive``: a probe that looks for what it needs among the patches, and a linear layer; the encoder is frozen.

Masked models spread what they know over the patches, of which a mean or a class token says little. A learnt query
attends to all patch tokens, and what it brings is classified. CAE introduced the protocol (Chen et al., 2022, arXiv
2202.03026); the block and the settings are V-JEPA's (Bardes et al., 2024, arXiv 2404.08471; facebookresearch/jepa,
0f772c5, ``AttentiveClassifier`` and ``configs/evals/vitl16_in1k.yaml``). With the query :math:`q` and tokens :math:`X`,

.. math:: u = q + \mathrm{Attention}(q, \mathrm{LN}(X)), \qquad v = u + \mathrm{MLP}(\mathrm{LN}(u)), \qquad
    p = \mathrm{softmax}(W v) ,

heads of width 64, an MLP of four times the width, weights N(0, 0.02) truncated. AdamW, rate 1e-3 and a cosine to 0,
decay 1e-3 and a cosine to 1e-6 (vectors do not decay), gradients clipped to a norm of 1, 20 epochs, batch 1024.

**Differences**: crops (8 to 100 % of the area) and flips alone, where the code adds AutoAugment and random erasing; of
small data the batch is smaller, so that an epoch has 16 updates. A convolutional encoder's places are its tokens, so
that all encoders can be compared; class tokens are not looked at.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from selfsight.encoders.protocol import Encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.evaluation.features import Precision, encode, frozen
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.score import Score, score
from selfsight.recipes.recipe import OptimiserSpec, skip_vectors
from selfsight.schedules import cosine

UPDATES = 16
"""At least so many updates an epoch, where the data are smaller than sixteen of the paper's batches."""


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """The settings of one probe; they are saved with its score."""

    epochs: int = 20
    batch_size: int = 1024
    lr: float = 1e-3
    weight_decay: float = 1e-3
    heads: int


class AttentiveHead(nn.Module):
    """One block of cross-attention with a learnt query, and a linear classifier; equal seeds give equal weights."""

    def __init__(self, width: int, classes: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = nn.Parameter(torch.empty(1, 1, width))
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, heads_of(width), batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.linear = nn.Linear(width, classes)
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    nn.init.trunc_normal_(parameter, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
            with torch.no_grad():  # what is added to a residual path begins smaller, by the depth of one block
                for last in (self.attention.out_proj.weight, self.mlp[2].weight):
                    cast(Tensor, last).div_(2**0.5)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        given, query = self.norm1(tokens), self.query.expand(len(tokens), -1, -1)
        found = query + self.attention(query, given, given, need_weights=False)[0]
        return self.linear((found + self.mlp(self.norm2(found)))[:, 0])


def heads_of(width: int) -> int:
    """As many heads of width 64 as the tokens hold, or the next smaller number that divides their width.

    >>> [heads_of(width) for width in (768, 192, 128, 100, 24)]
    [12, 3, 2, 1, 1]
    """
    return next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)


def attentive(encoder: Encoder, lesson: Lesson) -> tuple[Score, Attentive]:
    """Trains the probe on the patch tokens of the frozen ``encoder`` and scores it on the lesson's test images.

    Nothing of the encoder changes, parameters or buffers.
    """
    place = lesson.place
    cast(nn.Module, encoder).to(place.device)
    epochs = lesson.epochs or Attentive.epochs
    batch = lesson.batch(min(Attentive.batch_size, max(len(lesson.train) // UPDATES, 16)))
    lr = Attentive.lr if lesson.lr is None else lesson.lr
    spec = OptimiserSpec(
        build=AdamW,
        lr=cosine(lr, 0.0),
        weight_decay=cosine(Attentive.weight_decay, 1e-6),
        groups=skip_vectors,
        clip=1.0,
    )
    head, optimiser = None, None
    with frozen(encoder):
        for x, labels, clock in lesson.batches(epochs=epochs, batch_size=batch):
            with torch.no_grad():
                tokens = encode(encoder, x, kind="patches", precision=lesson.precision)
            if head is None or optimiser is None:  # the width of the tokens is known now
                head = AttentiveHead(tokens.shape[-1], lesson.classes, seed=lesson.seed).to(place.device)
                optimiser = build_optimiser(spec, head.named_parameters())
            lesson.update_(optimiser, spec, cross_entropy(head(tokens), labels), clock)
    assert head is not None, "a training has an update"
    held = lesson.tested(cast(Encoder, _Answers(encoder, head, lesson.precision)))
    probe = Attentive(epochs=epochs, batch_size=batch, lr=lr, heads=head.attention.num_heads)
    return score(held.x, held.labels), probe


class _Answers(nn.Module):
    """Encoder and probe as an encoder, whose features are the logits: so no patch tokens are kept."""

    def __init__(self, encoder: Encoder, head: AttentiveHead, precision: Precision) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.precision: Precision = precision
        self.width, self.stride = head.linear.out_features, encoder.stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        with torch.autocast(x.device.type, enabled=False):  # the encoder has its own precision, the probe the full one
            return self.head(encode(self.encoder, x, kind="patches", precision=self.precision))

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        return self.encoder.dense(x)
