"""Every method on the same 10,000 CIFAR-10 images, with the same encoder and CPU time; writes results/ladder.json."""

import argparse
import os
from pathlib import Path

from _bench import in_one_line
from selfsight.evaluation.ladder import ladder

HERE = Path(__file__).parent


def main() -> None:
    """Reads the flags and climbs."""
    data = Path(os.environ.get("SELFSIGHT_DATA", "../shared/data")) / "cifar10"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="recipes by name; all by default")
    parser.add_argument("--data", default=str(data))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--cpu-minutes", type=float, default=12.0, help="of training, summed over threads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"), help="where the runs are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--tests", type=int, default=10_000, help="test images at most")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of the scoring")
    parser.add_argument("--labels", type=float, default=0.0, help="the share of labels to fine-tune on, too")
    parser.add_argument("--tokenizer", help="a run of dvae, for beit")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ladder.json")
    flags = parser.parse_args()
    ladder(
        flags.methods or None,
        data=flags.data,
        out=flags.out,
        samples=flags.samples,
        cpu_minutes=flags.cpu_minutes,
        threads=flags.threads,
        seed=flags.seed,
        labels=flags.labels,
        image_size=flags.image_size,
        tests=flags.tests,
        precision=flags.precision,
        overrides={"beit": {"tokenizer": flags.tokenizer}} if flags.tokenizer else None,
        runs=flags.runs,
    )


if __name__ == "__main__":
    with in_one_line():
        main()
