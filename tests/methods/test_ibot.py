"""iBOT: both losses, what is hidden from the student, and the order of events."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MaskedMultiCrop, MultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.method import Clock, Objective, drive
from selfsight.methods.dino import DINO
from selfsight.methods.ibot import IBOT
from selfsight.parts.prototypes import DistillationHead
from selfsight.schedules import constant, linear


def clock(step: int, steps: int = 100, epochs: int = 10) -> Clock:
    return Clock(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)


def crops(b: int = 4, small: int = 2, seed: int = 0, share: float = 0.4) -> MaskedMultiCrop:
    generator = torch.Generator().manual_seed(seed)
    large = tuple(torch.randn(b, 3, 16, 16, generator=generator) for _ in range(2))
    little = tuple(torch.randn(b, 3, 8, 8, generator=generator) for _ in range(small))
    masked = [torch.rand(b, 16, generator=generator) < share for _ in range(2)]
    masked[0][0] = False  # one crop is not masked
    return MaskedMultiCrop(large, little, tuple(masked), torch.arange(b))


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=16, **{**shape, **options})  # type: ignore[arg-type]
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.3)
    return encoder


HOW = {"teacher_temperature": linear(0.04, 0.07, epochs=5), "momentum": constant(0.9)}


def ibot(encoder: nn.Module | None = None, **options: object) -> IBOT:
    encoder = encoder or vit()
    head = DistillationHead(nn.Linear(12, 6), 6, 9)
    return IBOT(encoder, head, patch_temperature=linear(0.04, 0.09, epochs=5), **HOW, **options)  # type: ignore


def run(method: nn.Module, batch: object, at: Clock, *, lr: float = 0.1, moves: bool = True) -> Objective:
    seen: list[Objective] = []

    def update(objective: Objective) -> bool:
        objective.loss.backward()
        seen.append(objective)
        if moves:
            with torch.no_grad():
                for _, p in method.trainables()["main"]:
                    if p.grad is not None and not any(p is held for held in objective.hold):
                        p.sub_(lr * p.grad)
            method.zero_grad()
        return moves

    drive(method.step(batch, at), update)
    (objective,) = seen
    return objective


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(dim=-1, keepdim=True)


def hidden(method: IBOT, x: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """The student's class token and patches, its patches replaced one by one."""
    model = method.student.model
    patches = model.patch_embed(x).flatten(1, 2).clone()
    for image, places in enumerate(masked):
        for place in places.nonzero().flatten().tolist():
            patches[image, place] = method.mask_token[0]
    return method.student.tokens(patches + model.pos_embed[:, model.num_prefix_tokens :])


def whole(encoder: nn.Module, x: Tensor) -> Tensor:
    """What a crop is compared by, from timm's own forward."""
    model = encoder.model
    y = model.forward_features(x)
    return model.forward_head(y, pre_logits=True) if model.cls_token is None else model.fc_norm(y[:, 0])


@pytest.mark.parametrize("pool", [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}])
def test_both_losses_are_the_papers_equations(pool: dict[str, object]) -> None:
    method, batch = ibot(vit(**pool), image_weight=0.7, patch_weight=1.3), crops()
    nn.init.normal_(method.mask_token)
    method.centre.value.copy_(torch.linspace(-0.2, 0.2, 9))
    method.patch_centre.value.copy_(torch.linspace(0.3, -0.3, 9))
    with torch.no_grad():
        seen = [method.encoder.tokens(method.encoder.embed(x)) for x in batch.large]
        teacher = [method.teacher_head(whole(method.encoder, x)).double() for x in batch.large]
        tokenizer = [method.teacher_head(patches).double() for _, patches in seen]
        own = [hidden(method, x, m) for x, m in zip(batch.large, batch.masked, strict=True)]
        student = [method.student_head(h).double() for h, _ in own]
        student += [method.student_head(whole(method.student, x)).double() for x in batch.small]
        image = [
            -(softmax((t - method.centre.value) / 0.052) * softmax(s / 0.1).log()).sum(dim=1).mean()
            for u, t in enumerate(teacher)
            for v, s in enumerate(student)
            if u != v
        ]
        patch = []
        for t, (_, patches), m in zip(tokenizer, own, batch.masked, strict=True):
            s = method.student_head(patches).double()
            p = softmax((t - method.patch_centre.value) / 0.06)
            each = -(p * softmax(s / 0.1).log()).sum(dim=-1)
            patch.append(((each * m).sum(dim=1) / m.sum(dim=1).clamp_min(1)).mean())
    found = run(method, batch, clock(20))  # 2 of 5 epochs of warm-up
    assert float(found.log["image_loss"]) == pytest.approx(float(sum(image)) / 6, rel=1e-4)
    assert float(found.log["patch_loss"]) == pytest.approx(float(sum(patch)) / 2, rel=1e-4)
    both = 0.7 * float(sum(image)) / 6 + 1.3 * float(sum(patch)) / 2
    assert float(found.loss.detach()) == pytest.approx(both, rel=1e-4)


def test_batch_norm_in_the_head_sees_all_patches_and_class_tokens_apart() -> None:
    head = DistillationHead(nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6)), 6, 9)
    method, batch = IBOT(vit(), head, patch_temperature=constant(0.06), **HOW), crops()  # type: ignore[arg-type]
    large, masked = torch.cat(batch.large), torch.cat(batch.masked)

    def naive(head: nn.Module, x: Tensor) -> Tensor:
        z = head.trunk[0](x)
        z = (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt()
        return (z / z.norm(dim=1, keepdim=True)) @ head.last.weight.T

    with torch.no_grad():
        h, seen = method.encoder.tokens(method.encoder.embed(large))
        own = method.student.tokens(method.hide(large, masked))[1]
        told = naive(method.teacher_head, seen.flatten(0, 1)).reshape(8, 16, 9)
        found = method.teach(large, masked)
        for mine, theirs in zip(found, (naive(method.teacher_head, h), told[masked], told.mean((0, 1))), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        predicted = naive(method.student_head, own.flatten(0, 1)).reshape(8, 16, 9)[masked]
        torch.testing.assert_close(method.predict(own, masked), predicted, rtol=1e-4, atol=1e-5)
    assert math.isfinite(float(run(method, crops(share=0.0), clock(20)).loss.detach()))


def test_without_masks_it_is_dino() -> None:
    clean = crops(share=0.0)
    method = ibot()
    dino = DINO(copy.deepcopy(method.student), copy.deepcopy(method.student_head), **HOW)  # type: ignore[arg-type]
    for step in range(20, 23):
        mine = run(method, clean, clock(step))
        theirs = run(dino, MultiCrop(clean.large, clean.small, clean.index), clock(step))
        assert float(mine.log["patch_loss"]) == 0
        assert float(mine.loss.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-5)
    torch.testing.assert_close(method.centre.value, dino.centre.value)
    for name, x in dino.encoder.state_dict().items():
        torch.testing.assert_close(method.encoder.state_dict()[name], x)


def test_hidden_pixels_do_not_reach_the_student() -> None:
    method, batch = ibot(), crops()
    nn.init.normal_(method.mask_token)
    x, masked = batch.large[1], batch.masked[1]
    pixels = masked.view(4, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():
        before = method.student.tokens(method.hide(x, masked))
        after = method.student.tokens(method.hide(torch.where(pixels, 9.0, x), masked))
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])
        assert not torch.equal(method.student.tokens(method.hide(x + 1, masked))[0], before[0])
        places = masked[0].nonzero().flatten()[:2]
        assert (before[1][0, places[0]] - before[1][0, places[1]]).abs().max() > 1e-3, (
            "hidden patches know their places"
        )


def test_the_mask_token_begins_at_zero_and_learns() -> None:
    method = ibot()
    assert not method.mask_token.any()
    assert method.mask_token.shape == (1, 12)
    run(method, crops(), clock(20))
    assert method.mask_token.any()


def test_the_teacher_sees_clean_crops_starts_as_the_student_and_gets_no_gradient() -> None:
    method, batch = ibot(), crops()
    for teacher, student in ((method.encoder, method.student), (method.teacher_head, method.student_head)):
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(t, s)
    trained = {name.split(".")[0] for name, _ in method.trainables()["main"]}
    assert trained == {"student", "student_head", "mask_token"}
    masks = tuple(~m for m in batch.masked)
    with torch.no_grad():
        large = torch.cat(batch.large)
        assert torch.equal(method.teach(large, torch.cat(batch.masked))[0], method.teach(large, torch.cat(masks))[0])


def test_the_mean_over_patches_is_that_of_all_their_logits() -> None:
    method, batch = ibot(), crops()
    large, masked = torch.cat(batch.large), torch.cat(batch.masked)
    _, logits, mean = method.teach(large, masked)
    with torch.no_grad():
        every = method.teacher_head(method.encoder.tokens(method.encoder.embed(large))[1])
    torch.testing.assert_close(logits, every[masked])
    torch.testing.assert_close(mean, every.mean(dim=(0, 1)))


def test_after_the_update_both_centres_move_and_the_teacher_follows() -> None:
    method, batch = ibot(), crops()
    before = copy.deepcopy(method)
    large = torch.cat(batch.large)
    with torch.no_grad():
        h, patches = before.encoder.tokens(before.encoder.embed(large))
        means = before.teacher_head(h).mean(dim=0), before.teacher_head(patches).mean(dim=(0, 1))
    run(method, batch, clock(20))
    torch.testing.assert_close(method.centre.value, 0.1 * means[0])
    torch.testing.assert_close(method.patch_centre.value, 0.1 * means[1])
    for teacher, student, old in (
        (method.encoder, method.student, before.encoder),
        (method.teacher_head, method.student_head, before.teacher_head),
    ):
        for t, s, o in zip(teacher.parameters(), student.parameters(), old.parameters(), strict=True):
            torch.testing.assert_close(t.detach(), 0.9 * o.detach() + 0.1 * s.detach())
    assert (method.student.model.norm.weight - before.student.model.norm.weight).abs().max() > 0


def test_an_update_that_was_not_made_moves_nothing() -> None:
    method = ibot()
    before = copy.deepcopy(method)
    run(method, crops(), clock(20), moves=False)
    assert torch.equal(method.centre.value, before.centre.value)
    assert torch.equal(method.patch_centre.value, before.patch_centre.value)
    for after, old in zip(method.encoder.parameters(), before.encoder.parameters(), strict=True):
        assert torch.equal(after, old)


def test_accumulation_equals_the_large_batch() -> None:
    batch = crops(b=6)
    whole, parts = ibot(), ibot()
    run(whole, batch, clock(20), lr=0.01)
    for part in (slice(0, 3), slice(3, 6)):
        cut = [tuple(x[part] for x in sized) for sized in (batch.large, batch.small, batch.masked)]
        run(parts, MaskedMultiCrop(*cut, batch.index[part]), clock(20), lr=0.005, moves=part.start > 0)
    for name, x in parts.state_dict().items():
        torch.testing.assert_close(x, whole.state_dict()[name], msg=name, rtol=1e-4, atol=1e-5)


def test_the_last_layer_stands_still_in_the_first_epoch() -> None:
    method = ibot()
    rows = method.student_head.last.weight.detach().clone()
    for step in range(3):
        assert run(method, crops(seed=step), clock(step)).hold == method.student_head.last_layer
    assert torch.equal(method.student_head.last.weight, rows)
    assert run(method, crops(), clock(10)).hold == ()
    assert (method.student_head.last.weight - rows).abs().max() > 1e-5


def test_a_batch_without_small_crops_and_one_without_any_mask_train() -> None:
    method = ibot()
    assert math.isfinite(float(run(method, crops(small=0), clock(20)).loss.detach()))
    assert math.isfinite(float(run(method, crops(small=0, share=0.0), clock(20)).loss.detach()))


def test_what_the_monitors_see() -> None:
    watch = run(ibot(), crops(), clock(0)).watch
    assert {name: tuple(x.shape) for name, x in watch.items()} == {
        "feature": (4, 12),
        "projection": (8, 6),
        "teacher": (8, 9),
    }
    assert not any(x.requires_grad for x in watch.values())
