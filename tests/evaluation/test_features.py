"""Features: every readable image once, in order, whatever the batch size, and the encoder left as it was."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from selfsight.data.protocol import DataError, Source
from selfsight.evaluation.features import extract, feature_batches, frozen
from selfsight.views.pipelines import plain_view
from selfsight.views.view import Normalise

Make = Callable[..., Source]
HALF = Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def one_by_one(encoder: nn.Module, source: Source) -> torch.Tensor:
    encoder.eval()
    rows = [(torch.from_numpy(source.read(i)).float() / 255 - 0.5) / 0.25 for i in range(len(source))]
    with torch.no_grad():
        return torch.cat([encoder(row[None]) for row in rows])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_are_the_encoders_own_in_the_sources_order(encoder, pictures: Make, batch_size: int) -> None:
    source = pictures(23)
    got = extract(encoder, source, plain_view(16, HALF), batch_size=batch_size)
    assert torch.allclose(got.x, one_by_one(encoder, source), atol=1e-5)
    assert got.labels.tolist() == np.asarray(source.labels).tolist()
    assert got.positions.tolist() == list(range(23))
    assert got.x.dtype == torch.float32


def test_patches_are_the_dense_map_row_by_row(encoder, pictures: Make) -> None:
    source = pictures(5)
    got = extract(encoder, source, plain_view(16, None), kind="patches").x
    x = torch.stack([torch.from_numpy(source.read(i)) for i in range(5)]).float() / 255
    dense = encoder.eval().dense(x)
    assert got.shape == (5, 16, 8)
    assert torch.allclose(got[3, 4 * 2 + 1], dense[3, :, 2, 1], atol=1e-5)


def test_the_encoder_is_left_as_it_was(encoder, pictures: Make) -> None:
    encoder.train()
    encoder.norm.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    extract(encoder, pictures(9), plain_view(16, None))
    assert encoder.training
    assert not encoder.norm.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_modes_come_back_after_an_error(encoder) -> None:
    encoder.train()
    with pytest.raises(RuntimeError), frozen(encoder):
        encoder(torch.zeros(1, 5, 16, 16))
    assert encoder.training


def test_unreadable_images_are_left_out_and_named(encoder, pictures: Make) -> None:
    source, skipped = pictures(12, broken=(3, 11)), []
    got = extract(encoder, source, plain_view(16, None), batch_size=4, on_skip=lambda *facts: skipped.append(facts))
    assert got.positions.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert got.labels.tolist() == np.asarray(source.labels)[got.positions.numpy()].tolist()
    assert skipped == [(3, "picture-3.png", "cut short"), (11, "picture-11.png", "cut short")]


def test_no_readable_image_is_one_line(encoder, pictures: Make) -> None:
    with pytest.raises(DataError, match="none of 2 images of pictures"):
        extract(encoder, pictures(2, broken=(0, 1)), plain_view(16, None))


def test_a_source_without_labels_gives_unknown_ones(encoder, pictures: Make) -> None:
    source = pictures(6)
    source.labels = None
    got = extract(encoder, source, plain_view(16, None))
    assert got.labels.tolist() == [-1] * 6
    assert len(got.labelled().x) == 0


def test_only_labelled_rows_are_kept(encoder, pictures: Make) -> None:
    source = pictures(6)
    source.labels = np.array([0, -1, 1, -1, 2, 3])
    got = extract(encoder, source, plain_view(16, None)).labelled()
    assert got.positions.tolist() == [0, 2, 4, 5]
    assert got.labels.tolist() == [0, 1, 2, 3]


def test_features_can_enter_a_graph(encoder, pictures: Make) -> None:
    got = extract(encoder, pictures(6), plain_view(16, None))
    weight = torch.ones(encoder.width, requires_grad=True)
    (got.x @ weight).sum().backward()
    assert weight.grad is not None


def test_bf16_changes_little_and_gives_float32(encoder, pictures: Make) -> None:
    exact = extract(encoder, pictures(6), plain_view(16, HALF))
    half = extract(encoder, pictures(6), plain_view(16, HALF), precision="bf16")
    assert half.x.dtype == torch.float32
    assert 0 < (half.x - exact.x).abs().max() < 0.05


def test_batches_hold_no_more_than_a_batch(encoder, pictures: Make) -> None:
    sizes = [len(batch.x) for batch in feature_batches(encoder, pictures(10), plain_view(16, None), batch_size=4)]
    assert sizes == [4, 4, 2]
