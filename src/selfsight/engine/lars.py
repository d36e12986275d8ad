r"""LARS: layer-wise adaptive rate scaling, in the three variants that the papers' codes really use.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888. For a tensor $w$ with
gradient $g$ and decay $\lambda$ the step is scaled by a trust ratio $r$:

| variant | ratio | momentum | who |
|---|---|---|---|
| ``simclr`` | $\eta|w| / |g + \lambda w|$ | inside: $v = m v + lr\,r(g + \lambda w)$, $w = w - v$ | SimCLR |
| ``byol`` | the same | outside: $v = m v + r(g + \lambda w)$, $w = w - lr\,v$ | BYOL, Barlow Twins, MoCo v3 |
| ``larc`` | $\eta|w| / (|g| + \lambda|w| + 10^{-8})$ | outside | SwAV (apex's LARC) |

The first two coincide while the learning rate is constant, and only then. In their norm $|g + \lambda w|$ and in $|w|$
a zero means the ratio 1, so that biases that start at zero move; LARC leaves a tensor with $|g| = 0$ as it is.
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_* is what torch's own optimisers are built of

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

Variant = Literal["simclr", "byol", "larc"]
_Many = list[Tensor] | tuple[Tensor, ...]


class LARS(Optimizer):
    """SGD with momentum whose step on each tensor is scaled by the tensor's trust ratio.

    A parameter group with ``adapt=False`` has the ratio 1: the papers that leave biases and norms out of the adaptation
    leave them out of the decay too, which is ``weight_decay=0`` in the same group.

    Args:
        params: parameters, named parameters or groups of either.
        lr: the learning rate.
        momentum: 0.9 in all the papers.
        weight_decay: $\\lambda$, part of the gradient (not decoupled).
        eta: the trust coefficient, 1e-3 in all the papers, 0.02 in solo-learn's CIFAR scripts.
        variant: see the table above.
        clip: the ratio is at most lr: $r = \\min(r / lr, 1)$ (solo-learn's small-image settings, with ``larc``).

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.0, 10.0])
    >>> LARS([weight], lr=1.0, momentum=0.0, eta=0.1).step()
    >>> weight.detach()
    tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        variant: Variant = "simclr",
        clip: bool = False,
    ) -> None:
        if variant not in ("simclr", "byol", "larc"):
            raise ValueError(f"unknown LARS variant {variant!r}; choose simclr, byol or larc")
        if lr < 0 or weight_decay < 0 or eta <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"LARS needs lr >= 0, weight_decay >= 0, eta > 0 and 0 <= momentum < 1; got lr={lr}, "
                f"weight_decay={weight_decay}, eta={eta}, momentum={momentum}"
            )
        own = {"momentum": momentum, "eta": eta, "variant": variant, "clip": clip, "adapt": True}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **own})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        grads = [w.grad for w in weights if w.grad is not None]
        updates = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            torch._foreach_mul_(updates, _ratios(group, weights, grads, updates))
        inside = group["variant"] == "simclr"
        if inside:
            torch._foreach_mul_(updates, group["lr"])
        if group["momentum"]:
            velocity = [self._velocity(w) for w in weights]
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, updates)
            updates = velocity
        torch._foreach_add_(weights, updates, alpha=-1.0 if inside else -group["lr"])

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _ratios(group: dict[str, Any], weights: _Many, grads: _Many, updates: _Many) -> list[Tensor]:
    """The trust ratios as tensors of no dimension: nothing waits for the device."""
    w = torch.stack(torch._foreach_norm(weights))
    larc = group["variant"] == "larc"
    g = torch.stack(torch._foreach_norm(grads if larc else updates))
    ratio = group["eta"] * w / (g + group["weight_decay"] * w + 1e-8 if larc else g)
    if group["clip"]:
        ratio = (ratio / group["lr"]).clamp(max=1.0) if group["lr"] else torch.ones_like(ratio)
    if larc:  # apex does not even decay a tensor without gradient
        ratio = torch.where(g > 0, ratio, 0.0)
        return list(torch.where(w > 0, ratio, 1.0).unbind())
    return list(torch.where((w > 0) & (g > 0), ratio, 1.0).unbind())
