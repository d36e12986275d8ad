"""The demonstration: SimCLR on the embedded world, and what it learnt beside two baselines."""

from pathlib import Path

from selfsight.evaluation.evaluate import evaluate
from selfsight.flags import Flags
from selfsight.pretraining import run_from_flags
from selfsight.report.page import write_report

HYPER = {"temperature": 0.1, "smallest_crop": 0.35}
"""A sharper temperature and larger crops than the paper's for small images, which trains a hundred times as long."""
SIZE, BATCH, LR, EPOCHS = 32, 125, 6e-3, 25
"""Chosen so that two CPU cores are done within five minutes, evaluation and report included."""


def demo(out: Path, *, epochs: int = EPOCHS) -> None:
    """Pretrains, prints kNN for the trained encoder, the random one and raw pixels, and writes the report."""
    flags = Flags(
        data="world",
        image_size=SIZE,
        backbone="tiny_cnn",
        batch_size=BATCH,
        optimiser="adamw",
        lr=LR,
        epochs=epochs,
        probe_every=max(epochs // 5, 1),
        report=False,
        out=out,
        overwrite=True,
    )
    folder, ended = run_from_flags("simclr", flags, HYPER, say=lambda text: print(text, flush=True))
    if ended != "done":
        raise SystemExit(130)
    results = evaluate(folder, protocols=("knn", "linear"))
    print(f"report: {write_report(folder)}")
    knn = results["knn"]
    gain = 100 * (knn["scores"]["top1"] - knn["baselines"]["random"]["top1"])
    print(f"kNN on images it never saw: {gain:+.1f} points over the same encoder untrained")
