"""selfsight: self-supervised learning of vision. This is the public table of contents; names load when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfsight.encoders.backbone import wrap as wrap
    from selfsight.encoders.build import build_encoder as build_encoder
    from selfsight.encoders.stem import adapt_stem as adapt_stem
    from selfsight.engine.export import export as export
    from selfsight.engine.run import open_run as open_run
    from selfsight.evaluation.embed import embed as embed
    from selfsight.evaluation.evaluate import evaluate as evaluate
    from selfsight.importing.checkpoint import import_checkpoint as import_checkpoint
    from selfsight.loading import load as load
    from selfsight.loading import load_classifier as load_classifier
    from selfsight.method import Clock as Clock
    from selfsight.method import Method as Method
    from selfsight.method import Objective as Objective
    from selfsight.method import drive as drive
    from selfsight.pipelines.stages import distill as distill
    from selfsight.pipelines.stages import finetune as finetune
    from selfsight.pipelines.stages import noisy_student as noisy_student
    from selfsight.pretraining import pretrain as pretrain
    from selfsight.report.page import write_report as write_report

__version__ = "0.1.0"

_PLACES = {
    "Clock": "selfsight.method",
    "Method": "selfsight.method",
    "Objective": "selfsight.method",
    "adapt_stem": "selfsight.encoders.stem",
    "build_encoder": "selfsight.encoders.build",
    "distill": "selfsight.pipelines.stages",
    "drive": "selfsight.method",
    "embed": "selfsight.evaluation.embed",
    "evaluate": "selfsight.evaluation.evaluate",
    "export": "selfsight.engine.export",
    "finetune": "selfsight.pipelines.stages",
    "import_checkpoint": "selfsight.importing.checkpoint",
    "load": "selfsight.loading",
    "load_classifier": "selfsight.loading",
    "noisy_student": "selfsight.pipelines.stages",
    "open_run": "selfsight.engine.run",
    "pretrain": "selfsight.pretraining",
    "wrap": "selfsight.encoders.backbone",
    "write_report": "selfsight.report.page",
}
__all__ = [
    "Clock",
    "Method",
    "Objective",
    "adapt_stem",
    "build_encoder",
    "distill",
    "drive",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "import_checkpoint",
    "load",
    "load_classifier",
    "noisy_student",
    "open_run",
    "pretrain",
    "wrap",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'selfsight' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
