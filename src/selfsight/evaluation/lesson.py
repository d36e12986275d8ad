"""What the protocols that train share: the images, how they are shown, for how long and where; and one update."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from selfsight.batches import Images
from selfsight.data.protocol import Source
from selfsight.encoders.protocol import Encoder
from selfsight.engine.optimisers import clip_, set_rates_
from selfsight.evaluation.features import Features, Precision, extract
from selfsight.evaluation.stream import (
    Labelled,
    Place,
    Progress,
    average_gradients_,
    labelled_batches,
    whole_batch,
)
from selfsight.method import Clock
from selfsight.recipes.recipe import OptimiserSpec
from selfsight.views.protocol import Views


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Images to learn from and to be tested on, all of them labelled; None leaves a choice to a protocol's paper."""

    train: Source
    test: Source
    crop: Views[Images]
    """The training view."""
    plain: Views[Images]
    """The test view."""
    classes: int
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    precision: Precision = "32"
    place: Place = field(default_factory=Place)
    progress: Progress | None = None

    def batch(self, usual: int) -> int:
        """The images of an update: what is asked for or else ``usual``, or all where there are fewer."""
        return whole_batch(self.batch_size or usual, len(self.train))

    def batches(self, *, epochs: int, batch_size: int) -> Iterator[Labelled]:
        """The training images in their training view, an update's at a time."""
        return labelled_batches(
            self.train, self.crop, epochs=epochs, batch_size=batch_size, seed=self.seed, place=self.place
        )

    def tested(self, encoder: Encoder) -> Features:
        """What ``encoder`` says of each test image."""
        return extract(encoder, self.test, self.plain, precision=self.precision, **vars(self.place))

    def update_(self, optimiser: Optimizer, spec: OptimiserSpec, loss: Tensor, clock: Clock) -> None:
        """One update by the gradient of ``loss``, averaged over the processes; tells whoever asked for progress."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        optimiser.zero_grad()
        loss.backward()
        average_gradients_(parameters)
        if spec.clip is not None:
            clip_(parameters, spec)
        set_rates_(optimiser, spec, clock)
        optimiser.step()
        if self.progress:
            self.progress(clock, loss.item())
