"""The named augmentations: their pairs differ where the papers say so, and all of them render."""

import pytest
import torch

from selfsight.keyed import Key
from selfsight.views import augment
from selfsight.views.pipelines import multi_crop, two_views
from selfsight.views.view import View

ALL = {
    "simclr": augment.simclr,
    "simclr_small": lambda size: augment.simclr(size, strength=0.5, blur=False),
    "moco_v1": augment.moco_v1,
    "moco_v2": augment.moco_v2,
    "byol_1": lambda size: augment.byol(size, view=1),
    "byol_2": lambda size: augment.byol(size, view=2),
    "barlow_2": lambda size: augment.barlow_twins(size, view=2),
    "swav": lambda size: augment.swav(size, scale=(0.14, 1.0)),
    "dino": lambda size: augment.dino(size, scale=(0.4, 1.0), view="global2"),
    "mae": augment.mae,
    "simmim": augment.simmim,
    "rotation": augment.rotation,
    "small": lambda size: augment.small(size, kind="asymmetric", view=2),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [16, 112])
def test_each_renders_finite_views_of_its_size(name: str, size: int) -> None:
    view: View = ALL[name](size)
    key = Key(0, torch.zeros(12, dtype=torch.long), torch.arange(12))
    views = two_views(view)
    batch = views.render(torch.randint(0, 256, (12, 3, 40, 52), dtype=torch.uint8), views.plan(key), key)
    assert batch.x1.shape == (12, 3, size, size)
    assert torch.isfinite(batch.x1).all()
    assert not torch.equal(batch.x1, batch.x2)
    assert view.describe()


def test_what_sets_the_papers_apart() -> None:
    simclr, v1, v2 = augment.simclr(224), augment.moco_v1(224), augment.moco_v2(224)
    assert simclr.normalise is None
    assert simclr.blur is not None
    assert simclr.blur.kernel == 23
    assert v1.order.index("grey") < v1.order.index("jitter")
    assert v2.order.index("jitter") < v2.order.index("grey")
    assert v1.blur is None
    first, second = augment.byol(224, view=1), augment.byol(224, view=2)
    assert first.blur is not None
    assert second.blur is not None
    assert (first.blur.p, second.blur.p) == (1.0, 0.1)
    assert first.solarise is None
    assert second.solarise is not None
    assert augment.swav(224, scale=(0.14, 1.0)).normalise != augment.moco_v2(224).normalise
    assert augment.rotation(32).scale is None
    assert augment.rotation(224).scale == (0.08, 1.0)
    assert [augment.dino(96, scale=(0.05, 0.4), view=v).blur.p for v in ("global1", "global2", "local")] == [
        1,
        0.1,
        0.5,
    ]


def test_multi_crop_of_swav_and_dino() -> None:
    large = [augment.dino(32, scale=(0.4, 1.0), view=view) for view in ("global1", "global2")]
    views = multi_crop(large, [augment.dino(16, scale=(0.05, 0.4), view="local")] * 4)
    key = Key(0, torch.zeros(3, dtype=torch.long), torch.arange(3))
    batch = views.render(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), views.plan(key), key)
    assert [x.shape[-1] for x in batch.large + batch.small] == [32, 32, 16, 16, 16, 16]
