"""What discrete autoencoders are built of: DALL-E's networks against their published layout, and a frozen tokenizer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from selfsight.encoders import dalle
from selfsight.encoders.build import build_encoder
from selfsight.encoders.dalle import Shape, from_official, shape_of
from selfsight.errors import UserError
from selfsight.losses import codes
from selfsight.parts import tokenizers
from selfsight.parts.tokenizers import CodeHead, DalleDecoder, Tokenizer


class Conv(nn.Module):
    """A convolution with the official names of its parameters."""

    def __init__(self, inside: int, outside: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outside, inside, side, side) / (inside * side**2) ** 0.5)
        self.b = nn.Parameter(torch.randn(outside) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class OfficialBlock(nn.Module):
    def __init__(self, inside: int, outside: int, layers: int) -> None:
        super().__init__()
        self.gain = 1 / layers**2
        self.id_path = Conv(inside, outside, 1) if inside != outside else nn.Identity()
        self.res_path = nn.ModuleDict()
        sides = {"conv_1": 3, "conv_2": 3, "conv_3": 3, "conv_4": 1}
        for name, side in sides.items():
            a = inside if name == "conv_1" else outside // 4
            self.res_path[name] = Conv(a, outside if name == "conv_4" else outside // 4, side)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.res_path.values():
            y = layer(torch.relu(y))
        return self.id_path(x) + self.gain * y


class Official(nn.Module):
    """The published encoder's layout (openai/DALL-E 5be4b23, ``encoder.py``): names, order and sizes."""

    def __init__(self, hidden: int = 64, blocks: int = 2, codes: int = 512) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"input": Conv(3, hidden, 7)})
        for g in range(4):
            group = nn.ModuleDict()
            for k in range(blocks):
                inside = hidden * 2 ** max(g - (k == 0), 0)
                group[f"block_{k + 1}"] = OfficialBlock(inside, hidden * 2**g, 4 * blocks)
            self.blocks[f"group_{g + 1}"] = group
        self.blocks["output"] = nn.ModuleDict({"conv": Conv(8 * hidden, codes, 1)})

    def forward(self, x: Tensor) -> Tensor:
        """The logits of pixels in [0.1, 0.9]."""
        x = self.blocks["input"](x)
        for g in range(4):
            for block in self.blocks[f"group_{g + 1}"].values():  # type: ignore[operator]
                x = block(x)
            if g < 3:
                x = torch.max_pool2d(x, 2)
        return self.blocks["output"]["conv"](torch.relu(x))  # type: ignore[index]


def test_the_published_weights_give_the_same_logits() -> None:
    torch.manual_seed(0)
    official = Official()
    encoder_state, head_state = from_official(official.state_dict())
    shape = shape_of(encoder_state)
    assert shape == Shape(64, 2, 4)
    encoder, head = build_encoder("dalle", image_size=32, **shape._asdict()), CodeHead(512, 512)
    encoder.model.load_state_dict(encoder_state)
    head.load_state_dict(head_state)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = official(0.8 * x + 0.1)
        torch.testing.assert_close(head(encoder.dense(x)), wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(Tokenizer(encoder, head)(x), wanted.argmax(dim=1))


def test_what_is_no_encoder_of_dalles_is_refused() -> None:
    with pytest.raises(UserError, match="is no parameter of DALL-E's encoder"):
        from_official({"conv1.weight": torch.zeros(1)})
    whole = Official(blocks=1).state_dict()
    with pytest.raises(UserError, match="its input or its output is missing"):
        from_official({name: x for name, x in whole.items() if "output" not in name})


def test_the_published_size() -> None:
    encoder = build_encoder("dalle", image_size=64)
    assert (encoder.width, encoder.stride) == (2048, 8)
    parameters = sum(p.numel() for p in encoder.parameters()) + 2048 * 8192 + 8192
    assert parameters == 53_786_240  # of the official layout
    assert float(encoder.model.blocks.input.weight.detach().std()) == pytest.approx((3 * 49) ** -0.5, rel=0.02)
    assert not encoder.model.blocks.input.bias.any()


def test_options_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="dalle has no option depth"):
        build_encoder("dalle", image_size=32, depth=3)
    with pytest.raises(UserError, match="use --image-size 40"):
        build_encoder("dalle", image_size=42)


def test_the_decoder_paints_images() -> None:
    decoder = DalleDecoder(16, 3, groups=3, hidden=16, blocks=1, start=8)
    mu, log_scale = decoder(torch.rand(2, 16, 4, 4))
    assert mu.shape == log_scale.shape == (2, 3, 16, 16)
    official = DalleDecoder(8192, 3)
    assert sum(p.numel() for p in official.parameters()) == 43_829_766  # of the official layout


def test_a_tokenizer_stays_as_it_is() -> None:
    tokenizer = Tokenizer(build_encoder("dalle_nano", image_size=32), CodeHead(128, 16))
    holder = nn.ModuleList([tokenizer]).train()
    assert not tokenizer.training
    assert not any(p.requires_grad for p in holder.parameters())
    x = torch.rand(2, 3, 32, 32)
    codes = tokenizer(x)
    assert codes.shape == (2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer(x), codes)
        assert torch.equal(tokenizer(x.double()), codes)


def test_statistics_count_as_weights_do() -> None:
    """With other statistics of its batch norm a network says other codes."""
    tokenizer = Tokenizer(build_encoder("tiny_cnn", image_size=32), CodeHead(8, 4))
    before = tokenizer.fingerprint()
    norm = next(m for m in tokenizer.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean.add_(1e-3)
    assert tokenizer.fingerprint() != before


def test_what_encoder_and_decoder_each_have_is_the_same() -> None:
    """Encoders, parts and losses may not import each other, so the convolution and the margin stand in two places."""
    assert dalle.MARGIN == codes.MARGIN
    made = []
    for convolution in (dalle.conv, tokenizers._conv):
        torch.manual_seed(0)
        made.append(convolution(6, 4, 3))
    one, other = made
    assert (one.padding, one.stride) == (other.padding, other.stride)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
