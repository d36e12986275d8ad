"""PixPro and PixContrast: what is compared with what, who gets a gradient, when the target moves."""

from functools import partial

import pytest
import torch
from stand_ins import SmallEncoder, clock, take_step
from torch import Tensor, nn

from selfsight.batches import LocatedViews
from selfsight.losses.pixels import match, pixel_consistency, pixel_contrast
from selfsight.losses.regression import cosine_regression
from selfsight.methods.pixpro import Instance, PixPro, _of_one_place
from selfsight.parts.pixels import PixelPropagation, as_rows, pixel_mlp
from selfsight.schedules import constant, cosine

WHOLE, LEFT, RIGHT = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.4, 1.0], [0.9, 0.5, 1.0, 1.0]


def views(b: int = 8, *, box2: list[float] = WHOLE, dtype: torch.dtype = torch.float32) -> LocatedViews:
    generator = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(b, 3, 6, 6, generator=generator).to(dtype) for _ in range(2))
    return LocatedViews(x1, x2, torch.tensor([WHOLE] * b), torch.tensor([box2] * b), torch.arange(b))


def pixpro(m: float = 0.9, *, instance: bool = False) -> PixPro:
    torch.manual_seed(0)
    return PixPro(
        SmallEncoder(),
        pixel_mlp(6, 8, 4),
        PixelPropagation(pixel_mlp(4, 4), gamma=2.0),
        loss=pixel_consistency,
        momentum=constant(m),
        instance=Instance(pixel_mlp(6, 8, 4), pixel_mlp(4, 8, 4), 0.5) if instance else None,
    )


def pixcontrast() -> PixPro:
    torch.manual_seed(0)
    loss = partial(pixel_contrast, temperature=0.3)
    return PixPro(SmallEncoder(), pixel_mlp(6, 8, 4), nn.Identity(), loss=loss, momentum=constant(0.9))


def target(method: PixPro) -> list[Tensor]:
    found = [*method.target_encoder.parameters(), *method.target_projector.parameters()]
    return found + (list(method.target_instance_projector.parameters()) if method.target_instance_projector else [])


def online(method: PixPro) -> list[Tensor]:
    found = [*method.encoder.parameters(), *method.projector.parameters()]
    return found + (list(method.instance_projector.parameters()) if method.instance_projector else [])


def by_hand(method: PixPro, batch: LocatedViews, *, size: tuple[int, int] = (4, 4), threshold: float = 0.7) -> Tensor:
    """The loss out of the parts; batch norm sees each view by itself, so a second pass changes nothing."""
    z1, z2 = (method.projector(method.encoder.dense(x)) for x in (batch.x1, batch.x2))
    t1, t2 = (method.target_projector(method.target_encoder.dense(x)) for x in (batch.x1, batch.x2))
    matches = match(batch.box1, batch.box2, size=size, threshold=threshold)
    return method.loss(*map(as_rows, (method.propagation(z1), method.propagation(z2), t1, t2)), matches)


@pytest.mark.parametrize("build", [pixpro, pixcontrast])
@pytest.mark.parametrize("box2", [WHOLE, LEFT])
def test_online_pixels_meet_the_targets_of_the_same_place(build: type, box2: list[float]) -> None:
    method, batch = build(), views(box2=box2)
    with torch.no_grad():
        method.target_projector[0].weight.mul_(-1)  # so that it matters which network is asked
    objective = take_step(method, batch, moves=False)
    torch.testing.assert_close(objective.loss, by_hand(method, batch))
    exchanged = batch._replace(box1=batch.box2, box2=batch.box1)
    if box2 != WHOLE:
        assert abs(take_step(method, exchanged, moves=False).loss - objective.loss) > 1e-4


@pytest.mark.parametrize("build", [pixpro, pixcontrast])
def test_maps_need_not_be_square_and_the_threshold_is_a_choice(build: type) -> None:
    method, batch = build(), views(box2=LEFT)
    batch = batch._replace(x1=batch.x1[:, :, :5], x2=batch.x2[:, :, :5])
    method.threshold = 0.4
    loss = take_step(method, batch, moves=False).loss
    torch.testing.assert_close(loss, by_hand(method, batch, size=(3, 4), threshold=0.4))
    assert abs(loss - by_hand(method, batch, size=(3, 4))) > 1e-4


@pytest.mark.parametrize("build", [pixpro, pixcontrast])
def test_crops_that_do_not_overlap_cost_nothing(build: type) -> None:
    """Sheet 14, check 2."""
    batch = views(box2=RIGHT)._replace(box1=torch.tensor([[0.0, 0.0, 0.1, 0.1]] * 8))
    objective = take_step(build(), batch)
    assert objective.loss.item() == 0
    assert objective.log["pairs"].item() == 0


def test_propagation_is_on_the_online_side_alone() -> None:
    method, batch = pixpro(), views()
    before = take_step(method, batch, moves=False).loss
    method.propagation = nn.Identity()
    assert abs(take_step(method, batch, moves=False).loss - before) > 1e-3
    assert not [name for name, _ in method.named_parameters() if "target_propagation" in name]


@pytest.mark.parametrize("instance", [False, True])
def test_target_gets_no_gradient_and_moves_after_the_step(instance: bool) -> None:
    """Sheet 14, check 4."""
    method = pixpro(0.9, instance=instance).double()
    before = [p.clone() for p in target(method)]
    take_step(method, views(dtype=torch.float64))
    for old, new, o in zip(before, target(method), online(method), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * o, rtol=0, atol=1e-12)
    assert not torch.equal(before[0], online(method)[0])
    assert all(p.grad is None for p in target(method))
    assert all(p.grad is not None for p in [*online(method), *method.propagation.parameters()])
    trained = {id(p) for _, p in method.trainables()["main"]}
    assert not trained & {id(p) for p in target(method)}


def test_target_stays_when_no_optimiser_moved() -> None:
    method = pixpro(0.0)
    before = [p.clone() for p in target(method)]
    with torch.no_grad():
        online(method)[0].add_(1)
    take_step(method, views(), moves=False)
    assert all(torch.equal(a, b) for a, b in zip(before, target(method), strict=True))


def test_momentum_is_read_from_the_clock() -> None:
    """The official code's counter begins again on a resume; the clock does not."""
    method = pixpro()
    method.momentum = cosine(0.0, 1.0)
    take_step(method, views(), clock(0, 100))
    torch.testing.assert_close(target(method)[0], online(method)[0])
    before = target(method)[0].clone()
    take_step(method, views(), clock(100, 100))
    assert torch.equal(target(method)[0], before)


def test_the_instance_branch_adds_byols_loss_of_averaged_pixels() -> None:
    plain, method, batch = pixpro(), pixpro(instance=True), views()
    with torch.no_grad():
        for p in method.target_instance_projector.parameters():
            p.add_(0.3)
    loss = take_step(method, batch, moves=False).loss - take_step(plain, batch, moves=False).loss
    p1, p2 = (
        method.instance_predictor(method.instance_projector(method.encoder.dense(x))).mean(dim=(2, 3))
        for x in (batch.x1, batch.x2)
    )
    t1, t2 = (
        method.target_instance_projector(method.target_encoder.dense(x)).mean(dim=(2, 3)) for x in (batch.x1, batch.x2)
    )
    torch.testing.assert_close(loss, 0.5 * (cosine_regression(p1, t2) + cosine_regression(p2, t1)))


def test_what_it_hands_over() -> None:
    objective = take_step(pixpro(), views())
    assert {name: x.shape for name, x in objective.watch.items()} == {"feature": (16, 6), "projection": (16, 4)}
    assert objective.log["pairs"].item() == 16  # identical square crops: one match for each of 4 x 4 pixels
    assert 0 < objective.log["pixel_std"].item() <= 0.5
    assert not any(x.requires_grad for x in (*objective.watch.values(), *objective.log.values()))


def test_the_monitors_see_one_place_of_each_image_from_both_views() -> None:
    first, second = torch.arange(6.0).reshape(2, 3, 1), 10 + torch.arange(8.0).reshape(2, 4, 1)
    near = torch.zeros(2, 3, 4, dtype=torch.bool)
    near[0, 2, 1] = near[0, 2, 3] = True  # the second image's views share no place
    assert _of_one_place(first, second, near).flatten().tolist() == [2.0, 3.0, 11.0, 14.0]
