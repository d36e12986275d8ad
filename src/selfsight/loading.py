"""From a run's folder back to an encoder."""

from pathlib import Path
from typing import Any

from selfsight.engine.run import open_run


def load(run: Path | str) -> Any:
    """The trained encoder of a run, in evaluation mode: an ``nn.Module`` from images to features.

    ``encoder(x)`` gives ``b width``, ``encoder.dense(x)`` the last map; ``encoder.model`` is the timm model itself.
    Raises ``UserError`` where ``run`` is no run.
    """
    return open_run(run).encoder()
