"""The papers' augmentations by name, each a ``View``; numbers are those of the official code unless said otherwise.

All draw crops as torchvision does (ten attempts, then the central one). SimCLR's code tries up to a hundred times and
BYOL's once, with sides clamped to the image; brightness is multiplicative, as in SimCLRv2's code and torchvision, where
SimCLR v1's and BYOL's code adds it. Blur is the exact Gaussian: the PyTorch repositories use Pillow's approximation by
box filters, SimCLR and BYOL a kernel of a tenth of the image's side.
"""

from typing import Literal

from selfsight.sizes import SMALL
from selfsight.views.view import Blur, Jitter, Normalise, Solarise, View

SWAV = Normalise((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
"""SwAV's code has 0.228 where everyone else has 0.229 (facebookresearch/swav 06b1b7c)."""
CIFAR10 = Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""CIFAR-10's own numbers (solo-learn; others divide by 0.2023, 0.1994, 0.2010: the mean of each image's deviation)."""

CIFAR10_BY_IMAGE = Normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Those others: InstDisc, InvaSpread, the debiased loss, hard negatives, FlatNCE."""
STL10 = Normalise((0.4409, 0.4279, 0.3868), (0.2683, 0.2610, 0.2687))
"""STL-10's own numbers (SsnL/align_uniform e256d47)."""


def _tenth(size: int) -> int:
    """The taps of SimCLR's and BYOL's blur: a tenth of the side, made odd (224 px: 23 taps, 32 px: 3)."""
    return 2 * (size // 10 // 2) + 1


def simclr(size: int, *, strength: float = 1.0, blur: bool = True) -> View:
    """SimCLR (arXiv 2002.05709, appendix A; google-research/simclr 383d414): strength 1 and blur for ImageNet.

    CIFAR-10 (appendix B.9): strength 0.5, no blur. Inputs stay in [0, 1]: SimCLR does not normalise.

    >>> simclr(32, strength=0.5, blur=False).describe()
    'crop 0.08-1 of the area to 32 px (bicubic), flip 0.5, jitter (0.4, 0.4, 0.4, 0.1) 0.8, grey 0.2'
    """
    return View(
        size=size,
        scale=(0.08, 1.0),
        interpolation="bicubic",
        jitter=Jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        grey=0.2,
        blur=Blur(0.5, kernel=_tenth(size)) if blur else None,
        normalise=None,
    )


def align_uniform(size: int) -> View:
    """Alignment and uniformity on STL-10 (arXiv 2005.10242; SsnL/align_uniform e256d47): jitter always, hue too."""
    return View(size=size, scale=(0.08, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.4, p=1.0), grey=0.2, normalise=STL10)


def debiased(size: int) -> View:
    """The debiased loss and hard negatives on CIFAR-10 and STL-10 (chingyaoc/DCL 7d6345f, joshr17/HCL 7b4647f).

    Decoupled contrastive learning's public code (raminnakhli 0b9b76d) has the same without blur.
    """
    return View(
        size=size,
        scale=(0.08, 1.0),
        jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        grey=0.2,
        blur=Blur(0.5, kernel=_tenth(size)),
        normalise=CIFAR10_BY_IMAGE,
    )


def moco_v1(size: int) -> View:
    """MoCo v1 (arXiv 1911.05722; facebookresearch/moco 132aea9): grey first, then jitter always, hue included; no blur.

    Its CIFAR-10 notebook (branch colab-notebook) uses ``moco_v2(size, blur=False, scale=(0.08, 1.0))`` instead.
    """
    return View(
        size=size,
        scale=(0.2, 1.0),
        jitter=Jitter(0.4, 0.4, 0.4, 0.4, p=1.0),
        grey=0.2,
        order=("grey", "jitter", "blur", "solarise"),
    )


def moco_v2(size: int, *, blur: bool = True, scale: tuple[float, float] = (0.2, 1.0)) -> View:
    """MoCo v2 (arXiv 2003.04297; facebookresearch/moco 132aea9, ``--aug-plus``); SimSiam uses the same.

    MoCo's CIFAR-10 notebook: no blur, and torchvision's default ``scale=(0.08, 1.0)``.
    """
    return View(
        size=size,
        scale=scale,
        jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        grey=0.2,
        blur=Blur(0.5) if blur else None,
    )


def byol(size: int, *, view: Literal[1, 2]) -> View:
    """BYOL (arXiv 2006.07733, table 6; deepmind-research f5de0ed): view 1 always blurs, view 2 rarely, and solarises.

    For small images take ``small(size, kind="asymmetric", view=view)``.
    """
    return _asymmetric(size, view, _tenth(size))


def barlow_twins(size: int, *, view: Literal[1, 2]) -> View:
    """Barlow Twins (arXiv 2103.03230; facebookresearch/barlowtwins 8e8d284): BYOL's pair with Pillow's kind of blur."""
    return _asymmetric(size, view, None)


def _asymmetric(size: int, view: Literal[1, 2], kernel: int | None) -> View:
    return View(
        size=size,
        scale=(0.08, 1.0),
        interpolation="bicubic",
        jitter=Jitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        grey=0.2,
        blur=Blur(1.0 if view == 1 else 0.1, kernel=kernel),
        solarise=None if view == 1 else Solarise(0.2),
    )


def swav(size: int, *, scale: tuple[float, float]) -> View:
    """SwAV (arXiv 2006.09882; facebookresearch/swav 06b1b7c): 224 px with scale (0.14, 1), 96 px with (0.05, 0.14).

    Two crops alone, without small ones: 224 px with (0.08, 1).
    """
    return View(
        size=size,
        scale=scale,
        jitter=Jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        grey=0.2,
        blur=Blur(0.5),
        normalise=SWAV,
    )


def dino(size: int, *, scale: tuple[float, float], view: Literal["global1", "global2", "local"]) -> View:
    """DINO (arXiv 2104.14294; facebookresearch/dino 7c446df): 224 px with scale (0.4, 1), local 96 px with (0.05, 0.4).

    The first global crop always blurs, the second rarely and solarises, local ones blur every other time. Without
    local crops the scale is (0.14, 1).
    """
    return View(
        size=size,
        scale=scale,
        interpolation="bicubic",
        jitter=Jitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        grey=0.2,
        blur=Blur({"global1": 1.0, "global2": 0.1, "local": 0.5}[view]),
        solarise=Solarise(0.2) if view == "global2" else None,
    )


def mae(size: int, *, scale: tuple[float, float] = (0.2, 1.0)) -> View:
    """MAE (arXiv 2111.06377; facebookresearch/mae): crop and flip alone. CIFAR: ``scale=(0.08, 1.0)`` (solo-learn)."""
    return View(size=size, scale=scale, interpolation="bicubic")


def beit(size: int) -> View:
    """BEiT (arXiv 2106.08254; microsoft/unilm, ``beit``): crop, flip and a jitter without hue, always."""
    return View(size=size, scale=(0.08, 1.0), interpolation="bicubic", jitter=Jitter(0.4, 0.4, 0.4, 0.0))


def simmim(size: int) -> View:
    """SimMIM (arXiv 2111.09886; microsoft/SimMIM d3e29bc): a large crop and a flip alone."""
    return View(size=size, scale=(0.67, 1.0))


def rotation(size: int) -> View:
    """RotNet (arXiv 1803.07728; gidariss/FeatureLearningRotNet): flip, and a crop that never turns or stretches.

    Up to 96 px the CIFAR crop (pad by 4, crop back; the whole image where its native size is another), above it the
    ImageNet one (torchvision's default random resized crop).
    """
    if size <= SMALL:
        return View(size=size, scale=None, padding=4)
    return View(size=size, scale=(0.08, 1.0))


def small(
    size: int, *, kind: Literal["symmetric", "symmetric_weak", "asymmetric"] = "symmetric", view: Literal[1, 2] = 1
) -> View:
    """The CIFAR augmentations of solo-learn (vturrisi/solo-learn 9187ea3, ``scripts/pretrain/cifar``).

    ``symmetric`` jitters strongly, ``symmetric_weak`` half as much, both blur; ``asymmetric`` is BYOL's pair without
    blur, whose view 2 solarises. Bicubic, normalised by CIFAR-10's numbers (``solo/data/pretrain_dataloader.py``).
    """
    jitter = {
        "symmetric": Jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        "symmetric_weak": Jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        "asymmetric": Jitter(0.4, 0.4, 0.2, 0.1, p=0.8),
    }[kind]
    asymmetric = kind == "asymmetric"
    return View(
        size=size,
        scale=(0.08, 1.0),
        interpolation="bicubic",
        jitter=jitter,
        grey=0.2,
        blur=None if asymmetric else Blur(0.5),
        solarise=Solarise(0.2) if asymmetric and view == 2 else None,
        normalise=CIFAR10,
    )
