"""One method on fractions of the data and with encoders of several sizes (Xie et al., 2023, arXiv 2206.04664).

    selfsight bench scaling
    selfsight bench scaling mae --data images/ --sizes vit_small_patch16_224 vit_base_patch16_224 \\
        --fractions 0.1 0.2 0.5 1 --image-size 224 --patch-size 16 --updates 125000 --batch-size 1024 \\
        --optimiser paper --protocols finetune-100 --device cuda --out runs/scaling-imagenet

Every training has the same number of updates. Writes scaling.json, scaling.png and scaling.html into --out, with the
runs below it; what is there is not measured again.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from _bench import in_one_line
from selfsight.evaluation.scaling import FRACTIONS, SIZES, Rules, scaling


def flag(text: str) -> tuple[str, Any]:
    """A flag of the trainings as NAME=VALUE."""
    name, given, value = text.partition("=")
    if not given:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name.replace("-", "_"), yaml.safe_load(value)


def main() -> None:
    """Reads the flags and measures."""
    usual = Rules()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default=usual.method)
    parser.add_argument("--data", default=usual.data, help="images with labels; train and test as in evaluate")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="backbones by name")
    parser.add_argument("--fractions", nargs="+", type=float, default=list(FRACTIONS))
    parser.add_argument("--samples", type=int, help="what counts as all images. Default: all")
    parser.add_argument("--image-size", type=int, default=usual.image_size)
    parser.add_argument("--patch-size", type=int, default=usual.patch_size, help="0 for the backbones' own")
    parser.add_argument("--updates", type=int, default=usual.updates, help="of every training")
    parser.add_argument("--batch-size", type=int, default=usual.batch_size)
    parser.add_argument("--optimiser", choices=("adamw", "paper"), default=usual.optimiser)
    parser.add_argument("--lr", type=float, help=f"peak rate. Default: {usual.lr:g}, or the paper's")
    parser.add_argument(
        "--flag", type=flag, action="append", default=[], help="NAME=VALUE of the trainings, any number"
    )
    parser.add_argument("--protocols", nargs="+", default=list(usual.protocols), help="the first is drawn")
    parser.add_argument("--held", type=int, default=usual.held, help="images that each loss is measured on")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    given = parser.parse_args()
    rules = Rules(
        method=given.method,
        data=given.data,
        samples=given.samples,
        image_size=given.image_size,
        patch_size=given.patch_size or None,
        updates=given.updates,
        batch_size=given.batch_size,
        optimiser=given.optimiser,
        lr=given.lr if given.lr or given.optimiser == "paper" else usual.lr,
        protocols=tuple(given.protocols),
        held=given.held,
        seed=given.seed,
        flags=dict(given.flag),
    )
    how = {"sizes": given.sizes, "fractions": given.fractions, "device": given.device, "threads": given.threads}
    scaling(rules, out=given.out, **how)
    print(given.out / "scaling.html")


if __name__ == "__main__":
    with in_one_line():
        main()
