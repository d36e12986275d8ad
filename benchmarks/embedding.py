"""Embedding a folder of JPEG files, against the bare timm forward of as many ready images: images a second.

    python benchmarks/embedding.py [--backbone resnet50] [--device cuda]

Ours reads, decodes, resizes, encodes and writes a Parquet file; on a CPU the decoding takes its share of the same
cores, so the bar is 5 % of the forward's time for a net of ResNet-50's size.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from _bench import flags, row, save, turns
from selfsight.data.world import render
from selfsight.encoders.build import build_encoder
from selfsight.evaluation.embed import embed
from selfsight.views.pipelines import plain_view
from selfsight.views.view import IMAGENET

SIZE, BATCH = 224, 32


def main() -> None:
    """Writes the files, then measures both in turns."""
    parser = flags(__doc__, "embedding")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--workers", type=int, help="default: as `selfsight embed`")
    given = parser.parse_args()
    device, n = given.device, given.images
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "images"
        folder.mkdir()
        for i, image in enumerate(render(np.arange(n), size=256).image.transpose(0, 2, 3, 1)):
            Image.fromarray(image).save(folder / f"{i:06}.jpg", quality=90)
        encoder = build_encoder(given.backbone, image_size=SIZE)
        bare = timm.create_model(given.backbone, num_classes=0).eval().to(device)
        ready = torch.randn(BATCH, 3, SIZE, SIZE, device=device)

        def ours() -> float:
            began = time.perf_counter()
            embed(
                encoder,
                data=str(folder),
                out=Path(top) / "f.parquet",
                device=device,
                batch_size=BATCH,
                workers=given.workers,
                plain=plain_view(SIZE, IMAGENET),
            )
            return n / (time.perf_counter() - began)

        @torch.inference_mode()
        def forward() -> float:
            began = time.perf_counter()
            for _ in range(n // BATCH):
                out = bare(ready)
            out.sum().item()
            return n / (time.perf_counter() - began)

        rates = turns({"ours": ours, "bare": forward}, rounds=min(given.rounds, 3))
    what = f"embedding JPEG files with {given.backbone} at {SIZE} px"
    save("embedding", given, [row(what, "images/s", rates["ours"], "timm's forward", rates["bare"], target=0.95)])


if __name__ == "__main__":
    main()
