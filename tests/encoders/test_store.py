"""An encoder's files: exact, strict, atomic, and one line for what is wrong with them."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from selfsight.encoders.backbone import wrap
from selfsight.encoders.build import build_encoder
from selfsight.encoders.stem import adapt_stem
from selfsight.encoders.store import load_encoder, save_encoder

ENCODERS = {
    "small_cnn": {"image_size": 32, "channels": 2},
    "resnet10t": {"image_size": 32},
    "regnety_002": {"image_size": 64, "small_stem": False},
    "vit_tiny_patch16_224": {"image_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    made = build_encoder(request.param, **ENCODERS[request.param])
    return made.to(memory_format=torch.channels_last) if made.channels_last else made


def same(a: nn.Module, b: nn.Module, encoder) -> None:
    x = torch.randn(2, encoder.channels, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        torch.testing.assert_close(a.eval()(x), b.eval()(x), rtol=0, atol=1e-6)


def test_it_comes_back(encoder, tmp_path):
    assert save_encoder(encoder, tmp_path / "new", method="simclr") == tmp_path / "new"
    again = load_encoder(tmp_path / "new")
    same(encoder, again, encoder)
    facts = json.loads((tmp_path / "new" / "encoder.json").read_text())
    assert (facts["name"], facts["width"], facts["method"]) == (encoder.name, encoder.width, "simclr")
    assert (again.width, again.stride, again.options) == (encoder.width, encoder.stride, encoder.options)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["encoder.json", "encoder.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_the_weights_are_timms_own(name, tmp_path):
    options = {} if name == "resnet18" else {"patch_size": 8}
    encoder = build_encoder(name, image_size=32, **options)
    save_encoder(encoder, tmp_path)
    model = timm.create_model(name, num_classes=0, **({"img_size": 32, **options} if options else {}))
    adapt_stem(model).load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    same(encoder, model, encoder)


def test_a_module_of_ones_own_needs_itself(tmp_path):
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    save_encoder(wrap(net(), 4), tmp_path)
    with pytest.raises(ValueError, match="into=wrap"):
        load_encoder(tmp_path)
    fresh = wrap(net(), 4)
    assert load_encoder(tmp_path, into=fresh) is fresh
    assert torch.equal(fresh.model[1].weight.detach(), load_file(tmp_path / "encoder.safetensors")["1.weight"])
    with pytest.raises(ValueError, match="wrap"):
        save_encoder(net(), tmp_path)


def damage_weights(folder):
    path = folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def change(**facts):
    def damage(folder):
        path = folder / "encoder.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    return damage


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (damage_weights, r"cannot read .*encoder\.safetensors"),
        (lambda folder: (folder / "encoder.safetensors").unlink(), r"cannot read .*encoder\.safetensors"),
        (lambda folder: (folder / "encoder.json").unlink(), r"encoder\.json is missing"),
        (lambda folder: (folder / "encoder.json").write_text("{"), r"cannot read .*encoder\.json"),
        (lambda folder: (folder / "encoder.json").write_text("[]"), "not an encoder's"),
        (change(format=9), "format 9, newer than 1; update selfsight"),
        (change(name="resnet10t"), "does not fit resnet10t"),
        (change(channels=5), "does not fit small_cnn"),
    ],
)
def test_what_is_wrong_with_the_files(damage, line, tmp_path):
    save_encoder(build_encoder("small_cnn", image_size=32), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=line) as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_files(tmp_path):
    encoder = build_encoder("small_cnn", image_size=32)
    save_encoder(encoder, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    nn.init.zeros_(encoder.model.stem[0].weight)
    with pytest.raises(TypeError):
        save_encoder(encoder, tmp_path, method=object())  # not JSON
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
