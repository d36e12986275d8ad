"""How well each pretext task is solved on held-out images, and what it taught each layer; writes results/pretext.json.

    python benchmarks/ladder.py jigsaw rotation --data CALTECH --image-size 96 --runs runs/pretext --out ...
    python benchmarks/pretext.py jigsaw rotation --data CALTECH --runs runs/pretext

Takes the runs that the ladder kept. What the file holds already is not measured again.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch

from ladder import HERE
from selfsight.data.cache import cache_folder
from selfsight.engine.checkpoint import write_atomically
from selfsight.engine.machine import cpu_name
from selfsight.engine.run import open_run, versions
from selfsight.evaluation.baselines import random_encoder
from selfsight.evaluation.pretext import pretext
from selfsight.evaluation.protocols import LAYER, Contender, Settings, by_layer
from selfsight.evaluation.stream import Place
from selfsight.evaluation.subject import LabelledData, labelled, open_pair, open_subject


def main() -> None:
    """Reads the flags, measures run after run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--epochs", type=int, default=8, help="of the probes; the papers have 36")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pretext.json")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    how = Settings(epochs=flags.epochs, seed=flags.seed, precision="bf16", place=Place(cache_dir=cache_folder()))
    results: dict[str, Any] = json.loads(flags.out.read_text(encoding="utf-8")) if flags.out.exists() else {}
    rules = {"probe_epochs": flags.epochs, "seed": flags.seed}
    if any(results.get(name, value) != value for name, value in rules.items()):
        parser.error(f"{flags.out} was measured with another --epochs or --seed; give another --out or delete it")
    results = {**rules, "random": {}, "methods": {}, **results}
    for name in flags.methods:
        if name in results["methods"]:
            continue
        subject = open_subject(open_run(flags.runs / name))
        pair = open_pair(subject, flags.data, limit=None, labels=None, seed=flags.seed)
        data = labelled(pair, "layerwise")
        kind = subject.facts()["encoder"]
        if kind not in results["random"]:
            start = random_encoder(subject.encoder, data.train, subject.plain, seed=flags.seed, place=how.place)
            results["random"][kind] = layers(Contender(name="random", encoder=start, plain=subject.plain), data, how)
        trained = layers(Contender(name="trained", encoder=subject.encoder, plain=subject.plain), data, how)
        assert subject.run is not None
        by_index = subject.run.assembly.recipe.method.by_index
        own = {} if by_index else pretext(subject.run, pair[1], which="last", seed=flags.seed, place=how.place)
        results["methods"][name] = {"encoder": kind, "layers": trained, "task": own}
        data.recorded(results, flags.out)
        results |= {
            "machine": {"processor": cpu_name(), "threads": flags.threads},
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
        }
        write_atomically(flags.out, (json.dumps(results, indent=2) + "\n").encode())
        print(name, json.dumps(results["methods"][name]), flush=True)


def layers(who: Contender, data: LabelledData, how: Settings) -> dict[str, float]:
    """Top-1 accuracy behind each stage."""
    found = by_layer(who, data, how).numbers
    return {key.removeprefix(LAYER): float(value or 0) for key, value in found.items() if key.startswith(LAYER)}


if __name__ == "__main__":
    main()
