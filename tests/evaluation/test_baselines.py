"""Raw pixels and random encoders: what they are, and that the comparison is fair."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from selfsight.data.protocol import Source
from selfsight.encoders.backbone import wrap
from selfsight.encoders.build import build_encoder
from selfsight.evaluation.baselines import RawPixels, fresh, random_encoder
from selfsight.evaluation.features import extract
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]


def test_raw_pixels_are_the_pixels(pictures: Make) -> None:
    source = pictures(5, size=32)
    got = extract(RawPixels(channels=3), source, plain_view(32, None)).x
    assert got.shape == (5, 3 * 32 * 32)
    assert torch.allclose(got[4], torch.from_numpy(source.read(4)).flatten().float() / 255)


def test_other_sizes_are_brought_to_32_pixels(pictures: Make) -> None:
    assert extract(RawPixels(channels=3), pictures(4, size=48), plain_view(32, None)).x.shape == (4, 3072)


def test_fresh_builds_the_same_architecture_anew() -> None:
    trained = build_encoder("small_cnn", image_size=32)
    one, again, other = fresh(trained, seed=1), fresh(trained, seed=1), fresh(trained, seed=2)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (trained, one, again, other)]
    assert len({len(w) for w in weights}) == 1
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_fresh_resets_any_module_that_knows_how(encoder) -> None:
    other = fresh(encoder, seed=1)
    assert not torch.equal(other.conv.weight, encoder.conv.weight)
    assert other.norm.running_mean.abs().max() == 0


def test_fresh_resets_a_users_own_module() -> None:
    trained = wrap(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)
    other = fresh(trained, seed=1)
    assert other.width == 8
    assert not torch.equal(other.model[0].weight, trained.model[0].weight)


def test_fresh_refuses_what_it_cannot_reset(encoder) -> None:
    encoder.token = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="no random start for TinyEncoder"):
        fresh(encoder, seed=0)


def test_fresh_leaves_the_random_numbers_alone(encoder) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh(encoder, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_a_random_encoders_batch_norm_fits_the_data(encoder, pictures: Make) -> None:
    source, plain = pictures(40), plain_view(16, None)
    other = random_encoder(encoder, source, plain, seed=3)
    x = torch.stack([torch.from_numpy(source.read(i)) for i in range(40)]).float() / 255
    with torch.no_grad():
        seen = other.conv(x)
    assert not other.training
    assert torch.allclose(other.norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(other.norm.running_var, seen.var((0, 2, 3)), rtol=1e-3)
