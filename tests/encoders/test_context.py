"""Attention to a context: timm's block under a mask of its keys, and who sees whom."""

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelThingsBlock
from torch import Tensor, nn

from selfsight.encoders.build import build_encoder
from selfsight.encoders.context import attend, is_plain
from selfsight.encoders.protocol import ContextEncoder

CONTEXT = torch.tensor([[5, 0, 3], [1, 2, 4]])


def block(**options: object) -> Block:
    torch.manual_seed(0)
    made = Block(12, 3, **{"norm_layer": nn.LayerNorm, **options}).eval()  # type: ignore[arg-type]
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def only(context: Tensor, n: int) -> Tensor:
    """timm's mask: minus infinity for the keys that are not in the context."""
    bias = torch.full((len(context), 1, 1, n), -torch.inf)
    return bias.scatter_(3, context[:, None, None], 0.0).expand(-1, 1, n, -1)


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True}, {"qkv_bias": True, "qk_norm": True}, {"init_values": 0.5}], ids=str
)
def test_it_equals_timms_block_under_a_mask(options: dict[str, object]) -> None:
    made, x = block(**options), noise(2, 6, 12)
    with torch.no_grad():
        torch.testing.assert_close(attend(made, x, CONTEXT), made(x, attn_mask=only(CONTEXT, 6)))
        every = torch.arange(6).expand(2, 6)
        torch.testing.assert_close(attend(made, x, every), made(x))


def test_gradients_equal_those_under_a_mask() -> None:
    made, x = block(qkv_bias=True), noise(2, 6, 12).requires_grad_()
    parameters = [x, *made.parameters()]
    mine = torch.autograd.grad(attend(made, x, CONTEXT).square().sum(), parameters)
    theirs = torch.autograd.grad(made(x, attn_mask=only(CONTEXT, 6)).square().sum(), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_drop_path_and_dropout_act_in_training_alone() -> None:
    made, x = block(drop_path=0.5, attn_drop=0.5), noise(2, 6, 12)
    with torch.no_grad():
        assert torch.equal(attend(made, x, CONTEXT), attend(made, x, CONTEXT))
        made.train()
        assert not torch.equal(attend(made, x, CONTEXT), attend(made, x, CONTEXT))


def test_other_blocks_are_refused() -> None:
    other = ParallelThingsBlock(12, 3)
    assert not is_plain(other)
    with pytest.raises(ValueError, match="needs timm's plain Block, not ParallelThingsBlock"):
        attend(other, noise(2, 6, 12), CONTEXT)


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, **{**shape, **options}).eval()  # type: ignore
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.3)
    return encoder


KINDS = pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}], ids=str
)


@KINDS
def test_the_whole_image_as_context_is_plain_attention(options: dict[str, object]) -> None:
    encoder = vit(**options)
    assert isinstance(encoder, ContextEncoder)
    with torch.no_grad():
        embedded = encoder.embed(noise(2, 3, 32, 32))
        for mine, theirs in zip(
            encoder.in_context(embedded, torch.arange(16).expand(2, 16)), encoder.tokens(embedded), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


@KINDS
def test_a_patch_out_of_the_context_is_seen_by_itself_alone(options: dict[str, object]) -> None:
    encoder, context = vit(**options), torch.tensor([[0, 3, 9, 15]])
    with torch.no_grad():
        embedded = encoder.embed(noise(1, 3, 32, 32))
        token, patches = encoder.in_context(embedded, context)
        changed = embedded.clone()
        changed[:, 7] += noise(24)  # a constant would fall to the norms
        other, others = encoder.in_context(changed, context)
        moved = (others - patches).abs().amax(dim=2)[0] > 1e-6
        assert moved.nonzero().flatten().tolist() == [7]
        if encoder.model.cls_token is not None:  # it looks at the context
            assert torch.equal(token, other)
        changed = embedded.clone()
        changed[:, 9] += noise(24)
        moved = (encoder.in_context(changed, context)[1] - patches).abs().amax(dim=2)[0] > 1e-6
        assert bool(moved.all())


def test_layers_see_the_contexts_own_states_not_its_embeddings() -> None:
    """A change of the first block's answer to the context reaches the others through the second."""
    encoder, context = vit(class_token=False, global_pool="avg"), torch.tensor([[0, 3, 9, 15]])
    with torch.no_grad():
        x = encoder.embed(noise(1, 3, 32, 32))
        for made in encoder.model.blocks:
            x = attend(made, x, context)
        torch.testing.assert_close(
            encoder.in_context(encoder.embed(noise(1, 3, 32, 32)), context)[1], encoder.model.fc_norm(x)
        )
