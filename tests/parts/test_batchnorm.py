"""Scoped batch norm against torch's own, alone and over two processes."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from selfsight.distributed import mean
from selfsight.parts.batchnorm import ScopedBatchNorm, calibrate_, set_scope_

SHAPES = {"vectors": (12, 6), "maps": (12, 6, 4, 3), "sequences": (12, 6, 5)}


def inputs(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 40  # far from zero: squares would cancel


def filled(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return norm.double()


def play(norm: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two updates' worth of outputs, gradients and buffers."""
    x = x.clone().requires_grad_()
    norm(x * 0.5)
    y = norm(x)
    (y.sin().sum() + y[: len(y) // 3].pow(3).sum()).backward()
    grads = {f"grad {n}": p.grad for n, p in norm.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(norm.named_buffers())}


def own(shape: tuple[int, ...], **options: Any) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    return filled(kind(shape[1], **options))


@pytest.mark.parametrize("scope", ["all", "rank", 12, 99])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_process_is_torchs_batch_norm(shape, scope):
    expected, got = play(own(shape), inputs(shape)), play(set_scope_(own(shape), scope), inputs(shape))
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


@pytest.mark.parametrize("options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_options_of_torchs_batch_norm(options):
    shape = SHAPES["maps"]
    expected, scoped = own(shape, **options), set_scope_(own(shape, **options), 4)
    assert expected.state_dict().keys() == scoped.state_dict().keys()
    parts = [play(own(shape, **options), part) for part in inputs(shape).split(4)]
    got = play(scoped, inputs(shape))
    torch.testing.assert_close(got["y"], torch.cat([part["y"] for part in parts]))
    x = inputs(shape)
    torch.testing.assert_close(set_scope_(expected.eval(), 4)(x), expected(x))


def test_groups_are_separate_and_their_statistics_averaged():
    shape = SHAPES["maps"]
    x = inputs(shape) + torch.arange(12).div(4, rounding_mode="floor").view(-1, 1, 1, 1) * 7
    scoped = set_scope_(own(shape), 4)
    y = scoped(x)
    y.square().sum().backward()
    several = [own(shape) for _ in range(3)]
    outputs = [norm(part) for norm, part in zip(several, x.split(4), strict=True)]
    sum(o.square().sum() for o in outputs).backward()
    torch.testing.assert_close(y, torch.cat(outputs))
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(scoped, name).grad, sum(getattr(n, name).grad for n in several))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(scoped, name), torch.stack([getattr(n, name) for n in several]).mean(0))
    assert scoped.num_batches_tracked == 1


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="groups of 8 cannot split 12"):
        ScopedBatchNorm(6, scope=8)(torch.randn(12, 6))
    for scope in (1, 0, "gpu"):
        with pytest.raises((ValueError, TypeError), match=str(scope)):
            ScopedBatchNorm(6, scope=scope)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002"])
def test_conversion_keeps_objects_keys_and_function(name):
    import timm  # noqa: PLC0415 - the processes below import this file and do without

    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0)
    for i, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5 + i % 3, 2 + i % 3)
    keys, x = list(net.state_dict()), torch.randn(4, 3, 32, 32)
    parameters, before = dict(net.named_parameters()), net.eval()(x)
    assert set_scope_(net, "rank") is net
    assert list(net.state_dict()) == keys
    assert all(parameters[n] is p for n, p in net.named_parameters())
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(net(x), before)
    set_scope_(net, 2)
    assert {m.scope for m in net.modules() if isinstance(m, ScopedBatchNorm)} == {2}
    assert not any(m.training for m in net.modules())


def test_half_precision_keeps_its_statistics_in_single():
    scoped = ScopedBatchNorm(3, scope=4)
    x = (torch.randn(8, 3, 6, 6) + 300).bfloat16()
    y = scoped(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(scoped.running_mean, 0.1 * x.float().mean((0, 2, 3)), rtol=1e-5, atol=0)


def test_calibration_is_the_mean_over_batches_and_touches_nothing_else():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.9))
    net[1].running_mean.fill_(99.0)
    batches = [torch.randn(6, 4) + i for i in range(3)]
    weight = net[0].weight.detach().clone()
    net[2].eval()
    calibrate_(net, iter(batches))
    hidden = [net[0](b).detach() for b in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert torch.equal(net[0].weight, weight)
    assert (net.training, net[1].training, net[2].training, net[1].momentum) == (True, True, False, 0.1)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_(net, [])


def several(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    out: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        half = slice(rank * 6, rank * 6 + 6)
        for options in ({}, {"affine": False}):
            norm, x = set_scope_(own(shape, **options), "all"), inputs(shape).requires_grad_()
            norm(x * 0.5)  # no gradient asked of this one
            y = norm(x[half] * 1.0)
            whole = torch.arange(12)[half] < 4
            # each process's loss is a mean over its samples, and gradients are averaged over processes
            loss = 2 * (y.sin().sum() + y[whole].pow(3).sum())
            loss.backward()
            grads = {f"grad {n}": mean(p.grad) for n, p in norm.named_parameters()}
            out[f"{name} {sorted(options)}"] = {
                "y": y.detach(),
                "dx": x.grad[half] / 2,
                **grads,
                **dict(norm.named_buffers()),
            }
    for scope in ("rank", 3):
        norm = set_scope_(own(SHAPES["maps"]), scope)
        y = norm(inputs(SHAPES["maps"])[rank * 6 : rank * 6 + 6])
        out[str(scope)] = {"y": y.detach(), **dict(norm.named_buffers())}
    half = set_scope_(filled(nn.BatchNorm2d(6)).float(), "all")
    x = inputs(SHAPES["maps"])[rank * 6 : rank * 6 + 6].to(torch.bfloat16).requires_grad_()
    y = half(x)
    y.float().pow(3).sum().backward()
    out["bfloat16"] = {"y": y.detach(), "dx": x.grad, **dict(half.named_buffers())}
    alone = set_scope_(nn.BatchNorm1d(6), "all").eval()
    out["eval"] = {"y": alone(torch.ones(1 + rank, 6)).detach()}  # evaluation waits for nobody
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=several, args=(rank, port, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)  # seconds, of a few that it takes: the machine may be busy
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=["affine", "plain"])
@pytest.mark.parametrize("name", SHAPES)
def test_two_processes_equal_one_on_the_joined_batch(two, name, options):
    norm, x = own(SHAPES[name], **options), inputs(SHAPES[name])
    got = [process[f"{name} {sorted(options)}"] for process in two]
    x = x.clone().requires_grad_()
    norm(torch.cat([x * 0.5, x * 0.5]))
    y = norm(x)
    (y.sin().sum() + y[:4].pow(3).sum()).backward()
    for key in ("y", "dx"):
        expected = {"y": y.detach(), "dx": x.grad}[key]
        torch.testing.assert_close(torch.cat([g[key] for g in got]), expected, rtol=1e-9, atol=1e-9)
    for key, p in norm.named_parameters():
        torch.testing.assert_close(got[0][f"grad {key}"], p.grad, rtol=1e-9, atol=1e-9)
    for key, buffer in norm.named_buffers():
        torch.testing.assert_close(got[0][key], buffer, rtol=1e-9, atol=1e-9)
        assert torch.equal(got[0][key], got[1][key]), key


@pytest.mark.parametrize(("scope", "size"), [("rank", 6), (3, 3)])
def test_narrow_scopes_stay_apart_but_their_memories_do_not(two, scope, size):
    x, shape = inputs(SHAPES["maps"]), SHAPES["maps"]
    parts = [own(shape) for _ in range(12 // size)]
    expected = torch.cat([norm(part) for norm, part in zip(parts, x.split(size), strict=True)])
    torch.testing.assert_close(torch.cat([process[str(scope)]["y"] for process in two]), expected.detach())
    for name in ("running_mean", "running_var"):
        assert torch.equal(two[0][str(scope)][name], two[1][str(scope)][name])
        joined = torch.stack([getattr(norm, name) for norm in parts]).mean(0)
        torch.testing.assert_close(two[0][str(scope)][name], joined)


def test_two_processes_in_half_precision(two):
    norm, x = filled(nn.BatchNorm2d(6)).float(), inputs(SHAPES["maps"]).to(torch.bfloat16).requires_grad_()
    y = norm(x)
    y.float().pow(3).sum().backward()
    assert two[0]["bfloat16"]["y"].dtype == torch.bfloat16
    got = {key: torch.cat([process["bfloat16"][key] for process in two]) for key in ("y", "dx")}
    torch.testing.assert_close(got["y"], y.detach(), rtol=0.02, atol=0.02)
    scale = float(x.grad.abs().max())
    torch.testing.assert_close(got["dx"] / scale, x.grad / scale, rtol=0, atol=0.02)
    torch.testing.assert_close(two[0]["bfloat16"]["running_mean"], norm.running_mean, rtol=1e-5, atol=1e-6)


def test_evaluation_waits_for_nobody(two):
    assert [len(process["eval"]["y"]) for process in two] == [1, 2]
