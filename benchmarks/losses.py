"""NT-Xent forward and backward: seconds and memory against the batch, ours and the peers'.

    python benchmarks/losses.py [--pairs 1024 4096 16384] [--device cuda]

Each measurement is a process of its own, one thread on a CPU: its memory is the peak of the resident set less what it
was before the call (on a GPU the allocator's peak). The results must agree: loss and gradients to 1e-5.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _bench import bound, flags, row, save
from selfsight.losses.contrastive import nt_xent

WIDTH, TEMPERATURE = 128, 0.1
TARGETS = {16384: (5.0, 80.0)}
CONTENDERS = ("selfsight", "lightly", "stable-pretraining")
MOST = {"stable-pretraining": 4096, "lightly": 16384}
"""Pairs beyond which a contender is not asked: it would hold several matrices of their square."""
BIG = 2048
"""Pairs above which one round is enough, and takes long enough."""


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "selfsight":
        return lambda a, b: nt_xent(a, b, temperature=TEMPERATURE)
    if name == "lightly":
        from lightly.loss import NTXentLoss  # noqa: PLC0415

        return NTXentLoss(temperature=TEMPERATURE)
    from stable_pretraining.losses import NTXEntLoss  # noqa: PLC0415

    return NTXEntLoss(temperature=TEMPERATURE)


def once(name: str, pairs: int, device: str, keep: Path) -> dict[str, float]:
    """Forward and backward once, after a small one to warm up."""
    torch.set_num_threads(1)
    loss = loss_of(name)
    a, b = (torch.randn(pairs, WIDTH, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    small = [x[:64].to(device).requires_grad_() for x in (a, b)]
    loss(*small).backward()
    a, b = (x.to(device).requires_grad_() for x in (a, b))
    gc.collect()
    before = _resident(device)
    began = time.perf_counter()
    value = loss(a, b)
    value.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    after = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _status("VmHWM")
    assert a.grad is not None
    assert b.grad is not None
    torch.save({"loss": value.detach().cpu(), "grad": torch.cat([a.grad, b.grad]).cpu()}, keep)
    return {"seconds": seconds, "mib": max(after - before, 0.1)}


def _resident(device: str) -> float:
    """What is held now; the peak is counted from here on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def apart(name: str, pairs: int, device: str, keep: Path) -> dict[str, float] | None:
    """``once`` in a process of its own; None where it fails, of memory above all."""
    words = [sys.executable, __file__, "--once", name, "--pairs", str(pairs), "--device", device, "--keep", str(keep)]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def agree(mine: Path, other: Path) -> float:
    """The largest difference of the losses and gradients, relative to the largest value."""
    a, b = (torch.load(path, weights_only=True) for path in (mine, other))
    return max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in ("loss", "grad"))


def measure(pairs: int, device: str, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    names = [name for name in CONTENDERS if pairs <= MOST.get(name, pairs)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if pairs > BIG and device == "cpu" else rounds):
            for name in names:
                one = apart(name, pairs, device, Path(folder) / name)
                if one:
                    found[name].append(one)
        others = [name for name in names[1:] if found[name]]
        differences = {name: agree(Path(folder) / "selfsight", Path(folder) / name) for name in others}
    rows = []
    what = f"NT-Xent, 2 x {pairs:,} embeddings of {WIDTH}"
    for name in others:
        ours, theirs = found["selfsight"][: len(found[name])], found[name]
        targets = TARGETS.get(pairs, (None, None)) if (name, device) == ("lightly", "cpu") else (None, None)
        for key, unit, target in (("seconds", "s", targets[0]), ("mib", "MiB", targets[1])):
            mine, other = ([one[key] for one in those] for those in (ours, theirs))
            rows.append(row(what, unit, mine, name, other, target=target, less=True))
        rows.append(bound(f"{what}: difference from {name}", "", differences[name], at_most=1e-5))
    if device == "cuda" and pairs >= 131_072:
        rows.append(bound(f"{what}: memory", "MiB", found["selfsight"][0]["mib"], at_most=2048))
    return rows, {"pairs": pairs, "found": found}


def main() -> None:
    """Measures every batch; with --once it is one of the processes."""
    parser = flags(__doc__, "losses")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--once", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(once(given.once, given.pairs[0], given.device, given.keep)))
        return
    rows, details = [], []
    for pairs in given.pairs:
        mine, detail = measure(pairs, given.device, min(given.rounds, 3))
        rows, details = [*rows, *mine], [*details, detail]
        print(detail, flush=True)
    save("losses", given, rows, details=details)


if __name__ == "__main__":
    main()
