"""A recipe at its paper's size: how to build it, describe it, and take one step with it on a processor."""

from typing import Any

import torch
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.machine import Machine
from selfsight.engine.update import Updater
from selfsight.keyed import Key
from selfsight.method import Clock, Objective, drive
from selfsight.parts.batchnorm import ScopedBatchNorm
from selfsight.recipes.recipe import Recipe, Setting

IMAGENET = 1_281_167


class Width(nn.Module):
    """An encoder that is nothing but its width, where only the recipe's choices are looked at."""

    stride = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def dense(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).mean(dim=(2, 3))


def large(**options: Any) -> Setting:
    """ImageNet with a ResNet-50."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", image_size=224)
    return Setting(encoder=encoder, image_size=224, samples=IMAGENET, **options)


def small(**options: Any) -> Setting:
    """CIFAR-10 with a ResNet-18's width."""
    return Setting(**{"encoder": Width(512), "image_size": 32, "samples": 50_000, **options})


def at(epoch: float, epochs: int, batch: int, samples: int = IMAGENET) -> Clock:
    """The clock at an epoch."""
    steps = epochs * (samples // batch)
    return Clock(step=round(epoch / epochs * steps), steps=steps, epoch=int(epoch), epochs=epochs)


def layers(head: nn.Module) -> list[str]:
    """Each layer in a word: ``8-16+b`` a linear layer with bias, ``bn[wb]`` a batch norm with scale and shift."""
    words: list[str] = []
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}-{layer.out_features}" + ("+b" if layer.bias is not None else ""))
        elif isinstance(layer, nn.BatchNorm1d | ScopedBatchNorm):
            learnt = [name[0] for name, p in layer.named_parameters() if p.requires_grad]
            words.append(f"bn[{''.join(learnt)}]")
        else:
            words.append(type(layer).__name__)
    return words


def scopes(module: nn.Module) -> set[Any]:
    """The scopes of all batch norms; a plain one counts by its class."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {m.scope if isinstance(m, ScopedBatchNorm) else type(m).__name__ for m in norms}


def rendered(recipe: Recipe, count: int = 2) -> Any:
    """A batch of the recipe's own views, of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (count, 3, 250, 260), dtype=torch.uint8, generator=generator)
    key = Key(0, torch.zeros(count, dtype=torch.long), torch.arange(count))
    return recipe.views.render(images, recipe.views.plan(key), key)


def one_step(recipe: Recipe, batch: Any = None, *, epoch: float | None = None) -> tuple[float, float]:
    """One update, by default on two views of noise and in the middle of the training.

    Returns the loss and how far the encoder's weights moved.
    """
    if batch is None:
        generator = torch.Generator().manual_seed(0)
        x1, x2 = (torch.randn(2, 3, 224, 224, generator=generator) for _ in range(2))
        batch = TwoViews(x1, x2, torch.arange(2))
    encoder: Any = recipe.method.encoder
    weights = [p.detach().clone() for p in encoder.parameters()]
    updater = Updater(recipe, Machine(torch.device("cpu"), 0, 1, "32", torch.enable_grad), 1)
    clock = at(recipe.epochs / 2 if epoch is None else epoch, recipe.epochs, recipe.batch_size)
    updater.begin(clock, first=True, last=True)
    losses: list[float] = []

    def update(objective: Objective) -> bool:
        losses.append(float(objective.loss.detach()))
        return updater(objective)

    recipe.method.train()
    drive(recipe.method.step(batch, clock), update)
    moved = max(float((a - b.detach()).abs().max()) for a, b in zip(weights, encoder.parameters(), strict=True))
    return losses[0], moved
