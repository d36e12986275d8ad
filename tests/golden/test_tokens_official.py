"""iBOT against values of its official loss: crops, hidden patches, both centres, over five epochs' temperatures."""

import torch
from recorded import drawn, recorded, same

from selfsight.losses.distillation import masked_distillation, self_distillation, teacher_probabilities
from selfsight.parts.centre import Centre

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
