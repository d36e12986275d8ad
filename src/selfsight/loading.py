"""From a run's folder back to an encoder."""

from pathlib import Path
from typing import Any, Literal

from selfsight.engine.run import open_run


def load(run: Path | str, which: Literal["last", "best"] = "last") -> Any:
    """The trained encoder of a run, in evaluation mode: an ``nn.Module`` from images to features.

    ``best`` is the checkpoint with the best online probe, where the images have labels.

    ``encoder(x)`` gives ``b width``, ``encoder.dense(x)`` the last map; ``encoder.model`` is the timm model itself.
    Raises ``UserError`` where ``run`` is no run.
    """
    return open_run(run).encoder(which)
