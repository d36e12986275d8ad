r"""AMDIM: a view's whole tells the other view's parts from all other images' parts, at several scales.

Bachman, Hjelm, Buchwalter, "Learning Representations by Maximizing Mutual Information Across Views", NeurIPS 2019,
arXiv 1906.00910.

**Idea.** Deep InfoMax asks the feature of a whole image to recognise the features of its parts. Here whole and parts
come from two augmented views, so that what is recognised is content and not pixels, and parts recognise each other too.
The encoder pads nothing, so that a part's feature sees its part alone.

**Equations.** With features :math:`f_1, f_5, f_7` of 1, 5x5 and 7x7 places in a space of :math:`d` dimensions, a source
:math:`x_b` in one view, a map :math:`t_{b,l}` of the other, raw scores :math:`s_{b,b',l} = x_b^\top t_{b',l} / \sqrt d`
and :math:`u = c \tanh(s / c)`,

.. math:: \ell(x, t) = -\frac{1}{Bl} \sum_{b,l}
    \log \frac{e^{u_{b,b,l}}}{e^{u_{b,b,l}} + \sum_{b' \ne b} \sum_{l'} e^{u_{b,b',l'}}},

.. math:: L = \frac12 \sum_{\text{both directions}} \Big[\ell(f_1, f_5') + \ell(f_1, f_7') + \ell(f_5^*, f_5')
    + \lambda \sum_{\text{the three}} \overline{s^2}\Big],

where :math:`f_5^*` is one place of the 5x5, drawn for each image.

**Differences** between the paper, the official code (Philip-Bachman/amdim-public, 8754ae1) and this file:

- The strongest numbers of the paper rest on a policy of Fast AutoAugment that the code does not have, nor this file.
- The drawn places come with the batch, by each sample's key, where the code draws them in the loss.
- The code's negatives are the whole batch, spread by hand over GPUs, of which it spares the first by dummy chunks; here
  the maps of all processes are gathered. Its batch norm sees one GPU's batch, here a recipe's scope.
- The code trains two classifiers beside, on detached features, and estimates batch norm's statistics anew before it
  evaluates; here the engine's probe is there for that, and running statistics are used.
- The heads' shortcuts have a bias in the code, which the batch norm behind them takes away: none here. Where its
  encoder has batch norm, which is not its default, its heads have one more, inside: never here.
- The paper's mixture of Gaussians on top of the features is not here.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import PlacedViews
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import LocalEncoder
from selfsight.losses.infomax import local_infomax
from selfsight.method import Clock, Method, Objective, Steps


class AMDIM(Method[PlacedViews]):
    """AMDIM; ``head5`` and ``head7`` map the encoder's local features to its width, where the scores are taken.

    ``clip`` bounds the scores, ``penalty`` weighs their squares before clipping. ``watch`` has the pooled features of
    both views as ``feature``.
    """

    encoder: LocalEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(
        self, encoder: LocalEncoder, head5: nn.Module, head7: nn.Module, *, clip: float = 20.0, penalty: float = 0.05
    ) -> None:
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.head5 = head5
        self.head7 = head7
        self.clip = clip
        self.penalty = penalty

    def step(self, batch: PlacedViews, clock: Clock) -> Steps:
        ones, fives, sevens = zip(self.embed(batch.x1), self.embed(batch.x2), strict=True)
        all5, all7 = ([gather(x) for x in maps] for maps in (fives, sevens))
        offset = rank() * len(batch.x1)
        terms = [
            local_infomax(source, targets[other], clip=self.clip, everyone=everyone[other], offset=offset)
            for view, other in ((0, 1), (1, 0))
            for source, targets, everyone in (
                (ones[view], fives, all5),
                (ones[view], sevens, all7),
                (at_place(fives[view], batch.place[:, view]), fives, all5),
            )
        ]
        losses, squares = (torch.stack(column) for column in zip(*terms, strict=True))
        penalty = self.penalty * squares.sum() / 2
        tasks = losses.detach().view(2, 3).mean(dim=0)
        log = {"loss_1to5": tasks[0], "loss_1to7": tasks[1], "loss_5to5": tasks[2], "penalty": penalty.detach()}
        yield Objective(losses.sum() / 2 + penalty, log=log, watch={"feature": torch.cat(ones).detach()})

    def embed(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d 25"], Float[Tensor, "b d 49"]]:
        """The features of one place, of 5x5 and of 7x7, in the space of the scores."""
        one, five, seven = self.encoder.scales(x)
        return one, self.head5(five).flatten(2), self.head7(seven).flatten(2)


def at_place(x: Float[Tensor, "b d l"], u: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """Each sample's feature at the place that ``u`` in [0, 1) chooses.

    >>> at_place(torch.arange(4.0).view(1, 1, 4), torch.tensor([0.6]))
    tensor([[2.]])
    """
    places = x.shape[2]
    at = (u * places).long().clamp(max=places - 1)  # a half type's product may round up to all of them
    return x.gather(2, at[:, None, None].expand(-1, x.shape[1], 1))[:, :, 0]
