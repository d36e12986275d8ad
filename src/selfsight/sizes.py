"""Where small images end."""

SMALL = 96
"""Up to this many pixels a side images are small: the decoded cache, stems that keep the resolution, and the papers'
settings for CIFAR-10 and its like are for them; Tiny ImageNet (64) and STL-10 (96) are, ImageNet (224) is not."""
