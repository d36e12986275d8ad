"""iBOT against values of its official code: the loss alone, and student, teacher, heads and masks in training."""

from typing import Any

import torch
from recorded import descend, drawn, fill_, recorded, same
from torch import Tensor, nn

from selfsight.batches import MaskedMultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.losses.distillation import masked_distillation, self_distillation, teacher_probabilities
from selfsight.methods.ibot import IBOT
from selfsight.parts import heads
from selfsight.parts.centre import Centre
from selfsight.parts.prototypes import DistillationHead
from selfsight.schedules import cosine

OFFICIAL = recorded("tokens")


def test_the_loss_and_the_centres() -> None:
    """Two large crops and two small ones of three images, four patches, seven outputs; weights 0.7 and 1.3."""
    steps = OFFICIAL["loss"]["steps"]
    centre, patch_centre = Centre(7).double(), Centre(7).double()
    temperatures = zip([0.04, 0.055, 0.07, 0.07, 0.07], [0.04, 0.065, 0.09, 0.09, 0.09], strict=True)
    for k, (theirs, (tau, patch_tau)) in enumerate(zip(steps, temperatures, strict=True)):
        crops, small, teacher = (0.3 * drawn(10 * k + seed, 6, 7) for seed in (1, 2, 4))
        patches, tokens = (0.3 * drawn(10 * k + seed, 6, 4, 7) for seed in (3, 5))
        masked = (drawn(10 * k + 6, 2, 3, 2, 2) > 0.3).reshape(6, 4)
        crops.requires_grad_()
        patches.requires_grad_()
        p = teacher_probabilities(teacher.view(2, 3, 7), centre.value, temperature=tau)
        hidden = teacher_probabilities(tokens[masked][None], patch_centre.value, temperature=patch_tau)[0]
        image = self_distillation(torch.cat([crops, small]).view(4, 3, 7), p)
        patch = masked_distillation(patches[masked], hidden, masked)
        loss = 0.7 * image + 1.3 * patch
        same(
            [0.7 * float(image.detach()), 1.3 * float(patch.detach()), float(loss.detach())],
            [theirs["image"], theirs["patch"], theirs["loss"]],
        )
        gradients = torch.autograd.grad(loss, [crops, patches])
        same(gradients[0][0], theirs["gradient"])
        same(gradients[1][0].flatten(), theirs["patch_gradient"])
        centre.note_(teacher.mean(dim=0))
        patch_centre.note_(tokens.mean(dim=(0, 1)))
        centre.move_()
        patch_centre.move_()
        same(centre.value, theirs["centre"])
        same(patch_centre.value, theirs["patch_centre"])


def masked_crops(k: int) -> MaskedMultiCrop:
    """Two crops of three images of 12 px, about a third of their nine patches hidden."""
    x = [drawn(100 + 10 * k + i, 3, 3, 12, 12) for i in range(2)]
    masks = [drawn(102 + 10 * k + i, 3, 9) > 0.3 for i in range(2)]
    return MaskedMultiCrop((x[0], x[1]), (), (masks[0], masks[1]), torch.arange(3))


def made(case: dict[str, Any]) -> IBOT:
    encoder: Any = build_encoder("vit_tiny_patch16_224", image_size=12, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    trunk = heads.mlp(8, 10, 10, 6, norm=False, activation=nn.GELU)
    method = IBOT(
        encoder,
        DistillationHead(trunk, 6, 7, fixed_gain=False),
        teacher_temperature=lambda clock: case["temperatures"][clock.epoch],
        patch_temperature=lambda clock: case["patch_temperatures"][clock.epoch],
        momentum=cosine(0.9, 1.0),
        image_weight=0.7,
        patch_weight=1.3,
    ).double()
    named = dict(encoder.model.named_parameters())
    direction = method.student_head.last.parametrizations.weight.original1  # pyright: ignore
    fill_([*(named[name] for name in sorted(named)), method.mask_token, *trunk.parameters(), direction], 1)
    for teacher, student in ((method.encoder, encoder), (method.teacher_head, method.student_head)):
        teacher.load_state_dict(student.state_dict())  # pyright: ignore
    return method


@torch.no_grad()
def predictions(method: IBOT, batch: MaskedMultiCrop) -> tuple[Tensor, Tensor]:
    """The student's outputs of crops and of their hidden patches."""
    masked = torch.cat(batch.masked)
    h, patches = method.student.tokens(method.hide(torch.cat(batch.large), masked))
    return method.student_head(h).flatten(), method.student_head(patches[masked]).flatten()


def test_training() -> None:
    """Two epochs of two steps of plain gradient descent, the last layer frozen in the first; gains are trained."""
    case = OFFICIAL["training"]
    method, batches = made(case), [masked_crops(k) for k in range(4)]
    crops, hidden = predictions(method, batches[0])
    same(crops, case["crops"])
    same(hidden, case["predictions"])
    same(descend(method, batches, 0.3, steps=4, epochs=2), case["losses"])
    same(method.centre.value, case["centre"])
    same(method.patch_centre.value, case["patch_centre"])
    same(method.mask_token.flatten(), case["token"])
    last = masked_crops(9)
    same(predictions(method, last)[1], case["learnt"])
    taught, _, mean = method.teach(torch.cat(last.large), torch.cat(last.masked))
    same(taught.flatten(), case["teacher"])
    same(mean, case["tokens"])
