"""Images that the views are tried on: synthetic ones always, real ones where they are."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


def synthetic(n: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth colours with sharp edges and noise, uint8."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    smooth[:, :, : height // 3, width // 2 :] = torch.rand(n, channels, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(n, channels, height, width, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="session", params=["synthetic", "cifar10", "photograph"])
def pictures(request: pytest.FixtureRequest) -> Tensor:
    """A batch of uint8 images of one size: 32 px, CIFAR-10's, or one large photograph."""
    if request.param == "synthetic":
        return synthetic(16, 32, 32)
    folder: Path = request.getfixturevalue("real_data")
    if request.param == "cifar10":
        return torch.stack([_tensor(data) for data in _parquet(folder / "cifar10", 16)])
    found = sorted((folder / "single-image").glob("*.jpg")) if (folder / "single-image").is_dir() else []
    if not found:
        pytest.skip(f"no photograph in {folder / 'single-image'}")
    return _tensor(found[0].read_bytes())[None]


def _parquet(folder: Path, n: int) -> list[bytes]:
    files = sorted(folder.glob("test*.parquet"))
    if not files:
        pytest.skip(f"no CIFAR-10 in {folder}")
    import pyarrow.parquet as pq  # noqa: PLC0415  (only where there are real data)

    rows = next(pq.ParquetFile(files[0]).iter_batches(batch_size=n)).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict) and "bytes" in value)
    return [row[column]["bytes"] for row in rows]


def _tensor(data: bytes) -> Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
