r"""Batch norm over a named scope: all processes, one process, or groups of n samples within it.

$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ with $\mu, \sigma^2$ of the scope. ``all`` makes N processes
equal to one on the joined batch, on any backend (Ioffe and Szegedy, 2015, arXiv 1502.03167, over processes). An ``int``
stands in one process for the separate batch norms of several GPUs, on which MoCo's shuffling rests.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from selfsight.distributed import gather, mean, total, world_size

Scope = Literal["all", "rank"] | int


class ScopedBatchNorm(_BatchNorm):
    """Batch norm for inputs ``[b c ...]`` of any rank, with the state-dict keys of ``nn.BatchNorm*``.

    In evaluation, and in training where the scope is one process, this is ``F.batch_norm``. Running statistics are
    the same on all processes: of the joined batch in the scope ``all``, else the mean over processes and groups of
    what each of them saw (MoCo's official code keeps the first process's instead).

    Args:
        num_features: channels.
        scope: ``"all"`` processes, ``"rank"`` for each by itself, or the number of consecutive samples that share
            statistics. A batch that is no larger than the number is one group; a larger one must be a multiple of it.
        drop, act: what follows (timm's ``BatchNormAct2d`` has both in one module).

    >>> norm = ScopedBatchNorm(3, scope=4)
    >>> y = norm(torch.randn(8, 3, 5, 5))
    >>> bool(y[:4].mean().abs() < 1e-6)
    True
    """

    def __init__(
        self,
        num_features: int,
        *,
        scope: Scope = "all",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)  # pyright: ignore[reportUnknownMemberType]
        self.scope: Scope = _checked(scope)
        self.drop = drop
        self.act = act

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scope={self.scope!r}"

    def forward(self, input: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        y = self._normalise(input)
        y = y if self.drop is None else self.drop(y)
        return y if self.act is None else self.act(y)

    def _normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            blind = self.running_mean is None
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, blind, 0.0, self.eps)
        several = world_size() > 1
        if isinstance(self.scope, int) and len(x) > self.scope:
            y, seen = self._grouped(x, self.scope)
        elif several and self.scope == "all":
            y, seen = self._joined(x)
        elif several:
            y, seen = self._alone(x)
        else:  # the one kernel that does it all
            memory = (self.running_mean, self.running_var) if self._counts() else (None, None)
            return batch_norm(x, *memory, self.weight, self.bias, True, self._share(), self.eps)
        if self._counts():
            self._remember(mean(seen) if self.scope != "all" else seen)
        return y

    def _counts(self) -> bool:
        """Counts this batch, if there is a memory and it is to be kept up."""
        if self.num_batches_tracked is None or self.running_mean is None:
            return False
        self.num_batches_tracked.add_(1)
        return True

    def _share(self) -> float:
        """The weight of this batch in the running statistics; without momentum all batches weigh the same."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1.0 / float(self.num_batches_tracked)

    @torch.no_grad()
    def _remember(self, seen: Tensor) -> None:
        """Moves the running mean and variance towards ``seen``, a row of each."""
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(seen[0].to(self.running_mean.dtype), self._share())
        self.running_var.lerp_(seen[1].to(self.running_var.dtype), self._share())

    def _alone(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One process's statistics: the output, and a row each of mean and unbiased variance."""
        wide = torch.promote_types(x.dtype, torch.float32)
        seen = torch.zeros(2, x.shape[1], dtype=wide, device=x.device)
        return batch_norm(x, seen[0], seen[1], self.weight, self.bias, True, 1.0, self.eps), seen

    def _grouped(self, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        if len(x) % size:
            raise ValueError(f"batch norm in groups of {size} cannot split {len(x)} samples; use a multiple of {size}")
        ys, seen = zip(*(self._alone(part) for part in torch.split(x, size)), strict=True)
        return torch.cat(ys), torch.stack(seen).mean(0)

    def _joined(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, centre, variance, count = _Joined.apply(x, self.weight, self.bias, self.eps)
        return y, torch.stack([centre, variance * (count / (count - 1))])


class _Joined(torch.autograd.Function):
    """Batch norm with the statistics of all processes' samples.

    Forward gathers each process's count, mean and sum of squared deviations and merges them (Chan et al., 1979: no
    difference of large squares). Backward, with hats for normalised inputs and sums over everybody's samples:
    dx = gamma / sigma (dy - sum(dy) / n - x^ sum(dy x^) / n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        if x.numel() // x.shape[1] * world_size() < 2:  # the same on all processes, as gather wants equal batches
            raise ValueError("batch norm in training needs more than one value per channel; use a larger --batch-size")
        wide = torch.promote_types(x.dtype, torch.float32)
        over = [0, *range(2, x.ndim)]
        own_variance, own_mean = torch.var_mean(x.to(wide), over, correction=0)
        own_count = own_mean.new_full((1,), x.numel() // x.shape[1])
        every = gather(torch.cat([own_count, own_mean, own_variance])[None])
        counts, means, variances = every[:, :1], *every[:, 1:].chunk(2, dim=1)
        count = counts.sum()
        centre = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - centre) ** 2)).sum(0) / count
        ctx.save_for_backward(x, weight, centre, variance, count)
        ctx.eps, ctx.shifts = eps, bias is not None
        ctx.mark_non_differentiable(centre, variance, count)
        return batch_norm(x, centre, variance, weight, bias, False, 0.0, eps), centre, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, centre, variance, count = ctx.saved_tensors
        # the kernel of evaluation gives dy gamma / sigma, sum(dy x^) and sum(dy) in one pass
        need = [True, True, True]
        dx, own_scale, own_shift = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, centre, variance, centre, variance, False, ctx.eps, need
        )
        scale, shift = total(torch.stack([own_scale, own_shift])) / count
        shape = [1, -1, *[1] * (x.ndim - 2)]
        inverse = (variance + ctx.eps).rsqrt()
        gain = inverse if weight is None else inverse * weight
        slope = gain * inverse * scale
        dx = dx - (x * slope.view(shape) + (gain * shift - slope * centre).view(shape))
        return dx.to(x.dtype), None if weight is None else own_scale, own_shift if ctx.shifts else None, None


def _checked(scope: Scope) -> Scope:
    if scope == "all" or scope == "rank" or scope > 1:  # noqa: PLR1714 - narrows the type
        return scope
    raise ValueError(f"batch norm's scope is 'all', 'rank' or a group size of at least 2; got {scope!r}")


def set_scope_(module: nn.Module, scope: Scope) -> nn.Module:
    """Gives every batch norm in ``module`` this scope, in place; returns ``module``, or what replaces it.

    Parameters and buffers stay the same objects, and the state-dict keys the same. Converts ``nn.BatchNorm1d/2d/3d``,
    ``nn.SyncBatchNorm`` and timm's ``BatchNormAct2d`` with what follows in it.
    """
    _checked(scope)
    if isinstance(module, _BatchNorm):
        return _scoped(module, scope)
    for name, child in module.named_children():
        changed = set_scope_(child, scope)
        if changed is not child:
            setattr(module, name, changed)
    return module


def scopes(module: nn.Module) -> set[Scope]:
    """The scopes of the batch norms in ``module``; torch's own see one process."""
    return {getattr(norm, "scope", "rank") for norm in module.modules() if isinstance(norm, _BatchNorm)}


def _scoped(norm: _BatchNorm, scope: Scope) -> ScopedBatchNorm:
    if isinstance(norm, ScopedBatchNorm):
        norm.scope = scope
        return norm
    drop, act = (_unless_identity(getattr(norm, part, None)) for part in ("drop", "act"))
    shape = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    features, eps, momentum, affine, track = shape
    scoped = ScopedBatchNorm(
        features, scope=scope, eps=eps, momentum=momentum, affine=affine, track_running_stats=track, drop=drop, act=act
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(scoped, name, getattr(norm, name))
    return scoped.train(norm.training)


def _unless_identity(part: nn.Module | None) -> nn.Module | None:
    return None if isinstance(part, nn.Identity) else part


@torch.no_grad()
def calibrate_(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Replaces the running statistics of every batch norm by the mean over ``batches``; returns ``module``.

    For weights that never saw data (a random baseline) or whose statistics lag behind. Everything else runs in
    evaluation mode, and nothing is left changed but the statistics.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    training = {m: m.training for m in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # every batch weighs the same
    try:
        seen = sum(1 for batch in batches if module(batch) is not None)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in training.items():
            part.training = mode
    if norms and not seen:
        raise ValueError("calibrating batch norm needs at least one batch; got none")
    return module
