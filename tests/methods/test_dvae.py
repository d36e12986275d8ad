"""dVAE: its loss by hand, what falls and rises, the average that is kept, what a report shows, and that it learns."""

import math

import pytest
import rig
import torch
from torch import Tensor

from selfsight.batches import SeededImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.codes import divergence_from_uniform, logit_laplace, map_pixels
from selfsight.method import Clock, Objective, drive
from selfsight.methods.dvae import DVAE, usage
from selfsight.parts.gumbel import gumbel_softmax
from selfsight.parts.tokenizers import CodeHead, DalleDecoder
from selfsight.schedules import constant, linear


def dvae(beta: float = 0.5, *, momentum: float = 0.9) -> DVAE:
    torch.manual_seed(0)
    return DVAE(
        build_encoder("dalle_nano", image_size=16, hidden=8),
        CodeHead(32, 10),
        DalleDecoder(10, 3, groups=3, hidden=8, blocks=1, start=8),
        temperature=linear(1.0, 0.1),
        kl_weight=constant(beta),
        momentum=momentum,
    )


def batch(b: int = 4) -> SeededImages:
    torch.manual_seed(1)
    return SeededImages(torch.rand(b, 3, 16, 16), torch.randint(2**24, (b, 2)), torch.arange(b))


def objective(method: DVAE, of: SeededImages, step: int = 0, *, moved: bool = False) -> Objective:
    seen: list[Objective] = []

    def update(found: Objective) -> bool:
        seen.append(found)
        return moved

    drive(method.step(of, Clock(step=step, steps=10, epoch=0, epochs=1)), update)
    return seen[0]


def test_the_loss_is_the_bound() -> None:
    method, images = dvae(beta=0.5), batch()
    found = objective(method, images, step=5)
    with torch.no_grad():
        logits = method.online_head(method.online.dense(images.x))
        mu, log_scale = method.online_decoder(gumbel_softmax(logits, images.seed, temperature=0.55))
        error = logit_laplace(mu, log_scale, map_pixels(images.x))
        wanted = error + 0.5 / (4 * 4 * 3) * divergence_from_uniform(logits)
    assert float(found.loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert found.watch["feature"].shape == (4, 32)
    assert set(found.log) == {"error", "divergence", "codes_used", "perplexity"}


def test_noise_belongs_to_the_sample() -> None:
    """Half of a batch costs what it costs within the whole one."""
    method, images = dvae(), batch(4)
    halves = [SeededImages(*(part[k : k + 2] for part in images)) for k in (0, 2)]
    parts = [float(objective(method, half).loss.detach()) for half in halves]
    assert float(objective(method, images).loss.detach()) == pytest.approx(sum(parts) / 2, rel=1e-5)
    other = images._replace(seed=images.seed + 1)
    assert float(objective(method, other).loss.detach()) != float(objective(method, images).loss.detach())


def test_every_trained_parameter_learns_and_no_average() -> None:
    method = dvae()
    objective(method, batch()).loss.backward()
    for name, p in method.named_parameters():
        assert p.requires_grad == name.startswith("online"), name
        assert (p.grad is not None and bool(p.grad.any())) == name.startswith("online"), name


def test_the_average_follows() -> None:
    method = dvae(momentum=0.5)
    with torch.no_grad():
        for p in method.online.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.encoder.parameters()]  # type: ignore[attr-defined]
    objective(method, batch(), step=5, moved=False)
    assert all(torch.equal(a, b) for a, b in zip(before, method.encoder.parameters(), strict=True))  # type: ignore
    objective(method, batch(), step=5, moved=True)
    for a, b in zip(before, method.encoder.parameters(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(b, a + 1 - 5 / 15)  # the momentum is still rising: 5 of 15
    objective(method, batch(), step=0, moved=True)
    for a, b in zip(method.online.parameters(), method.encoder.parameters(), strict=True):  # type: ignore
        assert torch.equal(a, b)


def test_usage_counts_codes() -> None:
    logits = torch.full((1, 8, 2, 2), -1.0)
    for place, code in enumerate((3, 3, 5, 5)):
        logits[0, code, place // 2, place % 2] = 1.0
    found = usage(logits)
    assert float(found["codes_used"]) == 2 / 8
    assert float(found["perplexity"]) == pytest.approx(2.0)


def test_what_a_report_shows() -> None:
    method, images = dvae(), batch()
    shown = method.reconstruct(images)
    assert torch.equal(shown.original, images.x)
    assert shown.hidden is None
    for picture in shown[:3]:
        assert picture.shape == images.x.shape
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    codes = method.codes(images.x)
    assert torch.equal(codes, method.tokenizer()(images.x))
    tiles = shown.masked[:, 0, ::4, ::4]
    for b in range(len(codes)):
        for one, other in ((0, 1), (5, 9), (3, 12)):
            same = codes[b].flatten()[one] == codes[b].flatten()[other]
            assert bool(tiles[b].flatten()[one] == tiles[b].flatten()[other]) == bool(same)


def colour_error(x: Tensor) -> float:
    """Of the mean colour of all images."""
    return float((x - x.mean(dim=(0, 2, 3), keepdim=True)).square().mean())


@pytest.mark.slow
def test_it_learns_a_tokenizer() -> None:
    """In place of the contract's linear probe: codes in use, and images painted from them, of images it never saw.

    After 320 updates of 64 images; the weight of the divergence is the recipe's for small images.
    """
    recipe = rig.build("dvae")
    recipe.method.to(memory_format=torch.channels_last)
    rig.train(recipe, rig.batches(recipe, 320), steps=320, place=rig.machine(bf16=True))
    method: DVAE = recipe.method.eval()  # type: ignore[assignment]
    x = rig.pictures(1000, "test")[0][:512].float() / 255
    shown = method.reconstruct(SeededImages(x, torch.zeros(512, 2, dtype=torch.long), torch.arange(512)))
    error = float((shown.reconstruction - x).square().mean())
    count = torch.bincount(method.codes(x).flatten(), minlength=64).float()
    p = count / count.sum()
    assert int((count > 0).sum()) > 32, "half of the codes"
    assert math.exp(-float(torch.xlogy(p, p).sum())) > 8
    assert error < 0.6 * colour_error(x), f"{error:.4f} against {colour_error(x):.4f}"
