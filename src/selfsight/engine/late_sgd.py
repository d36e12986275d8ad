r"""SGD for matrices of which a step sees few rows: what torch's SGD does to the others, done when they are next read.

A row without a gradient does not stand still under SGD with momentum :math:`m`, decay :math:`\lambda` and rate
:math:`\eta`: its velocity :math:`u` runs on and its weight :math:`w` decays. Both are linear,

.. math:: \begin{pmatrix} w \\ u \end{pmatrix} \leftarrow
    \begin{pmatrix} 1 - \eta\lambda & -\eta m \\ \lambda & m \end{pmatrix} \begin{pmatrix} w \\ u \end{pmatrix},

so the product of the steps' matrices brings a row up to date at once (PIC's "weight update correction", Cao et al.,
2020, arXiv 2006.14618, for rates that change with every step). The cost of a step then depends on the rows that it
reads and not on the data's size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selfsight.parts.rows import settles

_CHUNK = 1 << 16


class LateSGD(Optimizer):
    """SGD with momentum and decay, equal to torch's up to rounding, for what is read through ``parts.rows.Rows``.

    Args:
        params: matrices whose gradients are sparse, by rows.
        lr: the learning rate.
        momentum: of the velocity.
        weight_decay: part of the gradient (not decoupled).
        period: after so many steps every row is brought up to date, so that no longer history need be kept.

    >>> from selfsight.parts.rows import Rows
    >>> rows = Rows(3, 1)
    >>> optimiser = LateSGD(rows.parameters(), lr=0.1)
    >>> rows(torch.tensor([1])).sum().backward()
    >>> rows.weight.grad.is_sparse
    True
    """

    def __init__(
        self, params: Any, lr: float = 0.0, *, momentum: float = 0.9, weight_decay: float = 0.0, period: int = 1024
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or period < 1:
            raise ValueError(
                f"LateSGD needs lr >= 0, weight_decay >= 0, 0 <= momentum < 1 and period >= 1; got lr={lr}, "
                f"weight_decay={weight_decay}, momentum={momentum}, period={period}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "period": period})
        for group in self.param_groups:
            # entry a: the product of the steps that a row lacks which was last brought up to date after step a; here
            # and not in the state of a parameter, which torch would load in the parameter's own precision
            group["since"] = torch.eye(2, dtype=torch.float64)[None]
            for p in group["params"]:
                settles(p, partial(self._settle, p))

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """One update: now of the rows that have a gradient, later of all others."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, m, decay, since = group["lr"], group["momentum"], group["weight_decay"], group["since"]
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, lr, m, decay, now=len(since))
            one = torch.tensor([[1 - lr * decay, -lr * m], [decay, m]], dtype=torch.float64)
            group["since"] = torch.cat([one @ since, torch.eye(2, dtype=torch.float64)[None]])
            if len(since) >= group["period"]:
                for p in group["params"]:
                    for rows in torch.arange(len(p), device=p.device).split(_CHUNK):
                        self._settle(p, rows)
                    self._kept(p)["last"].zero_()
                group["since"] = group["since"][-1:]
        return loss

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float, m: float, decay: float, *, now: int) -> None:
        if not grad.is_sparse:
            raise ValueError("LateSGD got a gradient of all rows; read the parameter through parts.rows.Rows")
        grad = grad.coalesce()
        rows, kept = grad.indices()[0], self._kept(p)
        w = p[rows]  # up to date: they were settled when they were read
        u = m * kept["velocity"][rows] + grad.values() + decay * w
        kept["velocity"][rows] = u
        kept["last"][rows] = now
        p[rows] = w - lr * u

    @torch.no_grad()
    def _settle(self, p: nn.Parameter, rows: Tensor) -> None:
        """Does to ``rows`` what steps without a gradient would have done since they were last up to date."""
        since = next(group["since"] for group in self.param_groups if any(p is q for q in group["params"]))
        kept = self._kept(p)
        missed = since.to(p.dtype).to(p.device)[kept["last"][rows]]
        w, u = p[rows], kept["velocity"][rows]
        p[rows] = missed[:, 0, :1] * w + missed[:, 0, 1:] * u
        kept["velocity"][rows] = missed[:, 1, :1] * w + missed[:, 1, 1:] * u
        kept["last"][rows] = len(since) - 1

    def _kept(self, p: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["velocity"] = torch.zeros_like(p)
            state["last"] = torch.zeros(len(p), dtype=torch.long, device=p.device)
        return state

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for kept in self.state.values():
            kept["last"] = kept["last"].long()  # torch loads it as it would a moment, in the parameter's type
