"""Two views of SimCLR's whole recipe (blur too), from decoded uint8 images: pairs a second.

    python benchmarks/views.py [--sizes 32 96 224] [--device cuda]

Ours renders the batch at once; so does kornia; lightly and torchvision's v2 work image by image, lightly on PIL images
as its transform asks for. All do the same: crop 0.08-1 (bilinear), flip, jitter (0.8, 0.8, 0.8, 0.2) 0.8, grey 0.2,
blur 0.5, normalise; kornia crops in its two ways and, like lightly at these sizes, resizes without antialiasing. On two
cores the batched ones use two threads, lightly two workers of a DataLoader. On a GPU the
batched ones run there, and lightly's rate on one core stands beside them.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import kornia.augmentation as K  # noqa: N812
import numpy as np
import torch
import torchvision.transforms.v2 as T  # noqa: N812
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from _bench import Work, flags, in_turns, row, save
from selfsight.data.world import render
from selfsight.keyed import Key
from selfsight.views import augment
from selfsight.views.pipelines import two_views
from selfsight.views.view import IMAGENET

BATCH = {32: 512, 96: 128, 224: 32}
EACH = 32  # images a call of those that take one at a time
TARGETS = {(32, 1, "lightly"): 15.0, (32, 1, "kornia"): 4.0, (32, 1, "kornia (resample)"): 4.0}


def ours(images: Tensor, size: int) -> Work:
    pipeline = two_views(replace(augment.simclr(size), interpolation="bilinear", normalise=IMAGENET))
    index, call = torch.arange(len(images)), iter(range(10**9))

    def work() -> int:
        key = Key(seed=0, epoch=torch.full_like(index, next(call)), index=index)
        pipeline.render(images, pipeline.plan(key), key)
        return len(images)

    return work


def with_kornia(images: Tensor, size: int, cropping: str) -> Work:
    taps = 2 * (size // 10 // 2) + 1
    one = nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0), cropping_mode=cropping),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)),
    )

    @torch.no_grad()
    def work() -> int:
        x = images.float() / 255
        one(x), one(x)
        return len(images)

    return work


def with_torchvision(images: Tensor, size: int) -> Work:
    taps = 2 * (size // 10 // 2) + 1
    one = T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([T.GaussianBlur(taps, (0.1, 2.0))], p=0.5),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )

    def work() -> int:
        for image in images[:EACH]:
            one(image), one(image)
        return min(EACH, len(images))

    return work


def pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())) for image in images]


def with_lightly(images: Tensor, size: int) -> Work:
    transform, faces = SimCLRTransform(input_size=size), pictures(images[:EACH])

    def work() -> int:
        for face in faces:
            transform(face)
        return len(faces)

    return work


class Faces(torch.utils.data.Dataset[Any]):
    def __init__(self, faces: list[Image.Image], size: int, length: int) -> None:
        self.faces, self.length, self.transform = faces, length, SimCLRTransform(input_size=size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.faces[i % len(self.faces)])


def with_lightly_workers(images: Tensor, size: int) -> Work:
    """An epoch of two workers that stay: nothing is made ahead of it or left over for another's turn."""
    count = 20 * len(images) // (size // 32) ** 2
    loader = DataLoader(
        Faces(pictures(images), size, max(count, 128)), batch_size=32, num_workers=2, persistent_workers=True
    )
    return lambda: sum(len(batch[0]) for batch in loader)


def contenders(images: Tensor, size: int, cores: int, device: str) -> dict[str, Work]:
    there = images.to(device)
    batched = {
        "selfsight": ours(there, size),
        "kornia": with_kornia(there, size, "slice"),
        "kornia (resample)": with_kornia(there, size, "resample"),
    }
    if cores == 1:
        return {**batched, "lightly": with_lightly(images, size), "torchvision": with_torchvision(images, size)}
    return {**batched, "lightly": with_lightly_workers(images, size)}


def main() -> None:
    """Measures every size on one and on two cores."""
    parser = flags(__doc__, "views")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224])
    parser.add_argument("--batch", type=int, help="images of a batch, for all sizes")
    parser.set_defaults(rounds=4)
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        scenes = partial(render, size=size)
        images = torch.from_numpy(scenes(np.arange(given.batch or BATCH[size])).image)
        for cores in (1,) if given.device == "cuda" else (1, 2):
            torch.set_num_threads(cores)
            rates = in_turns(contenders(images, size, cores, given.device), rounds=given.rounds)
            place = "a GPU" if given.device == "cuda" else f"{cores} core{'s' * (cores > 1)}"
            for peer in list(rates)[1:]:
                target = TARGETS.get((size, cores, peer)) if given.device == "cpu" else None
                what = f"two SimCLR views of decoded images, {size} px, {place}"
                rows.append(row(what, "pairs/s", rates["selfsight"], peer, rates[peer], target=target))
    save("views", given, rows)


if __name__ == "__main__":
    main()
