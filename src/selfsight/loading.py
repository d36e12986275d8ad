"""From a run's folder back to an encoder or a classifier."""

from pathlib import Path
from typing import Any, Literal

from selfsight.engine.run import open_run
from selfsight.errors import UserError


def load(run: Path | str, which: Literal["last", "best"] = "last") -> Any:
    """The trained encoder of a run, in evaluation mode: an ``nn.Module`` from images to features.

    ``best`` is the checkpoint with the best online probe, where the images have labels.

    ``encoder(x)`` gives ``b width``, ``encoder.dense(x)`` the last map; ``encoder.model`` is the timm model itself.
    Raises ``UserError`` where ``run`` is no run.
    """
    return open_run(run).encoder(which)


def load_classifier(run: Path | str) -> Any:
    """The classifier of a fine-tuned or distilled run, in evaluation mode: a module from images to logits.

    ``open_run(run).classes`` names what they stand for. Raises ``UserError`` where the run is no classifier.
    """
    opened = open_run(run)
    if not opened.classes:
        raise UserError(f"{opened.path} is a run of {opened.method}, no classifier: selfsight finetune {opened.path}")
    return opened.recipe().method.eval()
