r"""Exemplar-CNN: every patch is a class, and its transforms are the class's members.

Dosovitskiy, Fischer, Springenberg, Riedmiller, Brox, "Discriminative Unsupervised Feature Learning with Exemplar
Convolutional Neural Networks", NIPS 2014 and TPAMI 2016, arXiv 1406.6909.

**Idea.** A patch is taken from each of some thousands of images, where gradients are large, since there objects are. It
founds a surrogate class, whose members are the patch moved, scaled, turned and recoloured at random. A network that
tells these classes apart must be blind to the transforms and still know one patch from all others.

**Equation.** With seed patches :math:`x_1 \dots x_N`, random transforms :math:`T`, the network :math:`g` and a linear
classifier :math:`W` of :math:`N` outputs,

.. math:: L = \frac1N \sum_{i=1}^{N} \mathbb{E}_T\, \mathrm{CE}(W g(T x_i), i) .

With :math:`\bar g_i = \mathbb{E}_T\, g(T x_i)` it is the cross-entropy of the mean feature, and what is not invariant
costs extra (the paper's equations 4 to 7):

.. math:: L_i = \mathrm{CE}(W \bar g_i, i)
    + \mathbb{E}_T \operatorname{lse}(W g(T x_i)) - \operatorname{lse}(W \bar g_i) .

**Differences** between the paper and this file (no official code is public; google/revisiting-self-supervised has a
re-implementation with a triplet loss, which normalises over the batch where it means the features):

- The paper draws 150 transforms of each seed once, here every epoch draws new ones. The seeds stay for good, by the
  key of each image (``views.exemplars``): class ``i`` is image ``i``'s.
- Its networks of two or three convolutions are not built: any encoder serves, and a head of one hidden layer with
  dropout stands for their last two layers.
- The blur that the paper has for matching descriptors only is left out.
- The classifier is a plain matrix with a gradient for every row. For many more classes than 8000 see ``pic``.
"""

from torch import nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Exemplars
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class Exemplar(Method[Exemplars]):
    """Exemplar-CNN; ``head`` maps the pooled feature to a logit for each class, which is an image's index."""

    by_index = True

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def step(self, batch: Exemplars, clock: Clock) -> Steps:
        h = self.encoder(batch.x)
        logits = full(self.head(h))
        accuracy = (logits.detach().argmax(dim=1) == batch.index).float().mean()
        yield Objective(
            cross_entropy(logits, batch.index), log={"exemplar_accuracy": accuracy}, watch={"feature": h.detach()}
        )
