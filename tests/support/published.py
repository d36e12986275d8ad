"""Checkpoints as the official codes write them: their names and shapes, recorded, with weights that anyone can draw."""

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded import recorded
from torch import Tensor

CASES = recorded("published")
SIZES = {"ibot": 24, "ibot_scaled": 24, "simmim_swin": 64}
"""Of the images; 32 pixels else."""


def weights(case: str, seed: int = 7) -> dict[str, Tensor]:
    """The state dict of one official model; buffers of whole numbers, and what is computed from sizes, are zero."""
    generator, out = np.random.default_rng(seed), dict[str, Tensor]()
    for key, (shape, kind) in sorted(CASES[case]["shapes"].items()):
        if kind != "f":
            out[key] = torch.zeros(shape, dtype=torch.long)
            continue
        x = torch.tensor(np.float32(0.2 * generator.standard_normal(shape)))
        if key.endswith("running_var"):
            x = x.abs() + 0.5
        elif len(shape) == 1 and key.endswith("weight"):
            x = x + 1
        out[key] = x
    return out


def mocov3() -> dict[str, Tensor]:
    """MoCo v3's two networks round the transformer of DINO's case, whose keys and blocks are the same."""
    out: dict[str, Tensor] = {}
    for name, seed in (("base_encoder", 7), ("momentum_encoder", 8)):
        for key, tensor in weights("dino", seed).items():
            if key.startswith("backbone."):
                out[key.replace("backbone", name, 1)] = tensor
        out |= {f"{name}.head.0.weight": torch.ones(5, 192), f"{name}.head.1.running_mean": torch.zeros(5)}
    return parallel({**out, "predictor.0.weight": torch.ones(4, 4)})


def images(case: str) -> Tensor:
    """Those that the official model was shown."""
    size = SIZES.get(case, 32)
    return torch.from_numpy(np.random.default_rng(11).standard_normal((2, 3, size, size)).astype(np.float32)).double()


def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a data-parallel module names them."""
    return {f"module.{key}": tensor for key, tensor in state.items()}


def written(case: str, folder: Path) -> Path:
    """A file as the official code saves it: with its optimiser, its settings and whatever else it keeps."""
    state = mocov3() if case == "mocov3" else weights(case)
    optimiser = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(0.1), "params": [0]}]}
    settings = argparse.Namespace(arch="vit", output_dir=Path("/nowhere").name)
    beside: dict[str, Any] = {"optimizer": optimiser, "epoch": 3}
    family = case.partition("_")[0]
    if family in ("dino", "ibot"):
        other = parallel(weights(case, 8))
        content = {"student": other, "teacher": state, **beside, "args": settings}
        content[f"{family}_loss"] = {"center": torch.zeros(1, 4)}
    elif family == "mocov3":
        content = {"arch": "vit_small", "state_dict": state, **beside}
    elif family == "simmim":
        content = {"model": state, **beside, "config": configuration()}
    elif family == "clip":
        content = state | {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    else:
        content = {"model": state, **beside, "args": settings}
    path = folder / f"{case}.pth"
    torch.save(content, path)
    return path


def configuration() -> Any:
    """What yacs makes of SimMIM's settings: a class of mappings that need not be installed."""
    module = sys.modules.setdefault("yacs.config", types.ModuleType("yacs.config"))
    if not hasattr(module, "CfgNode"):
        module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules.setdefault("yacs", types.ModuleType("yacs"))
    made = module.CfgNode(MODEL=module.CfgNode(TYPE="vit"))
    made.__dict__["__immutable__"] = True
    return made
