"""PIC: which classes the softmax runs over, what small crops teach, and weights that come back corrected."""

import pytest
import torch
from stand_ins import SmallEncoder, clock, two_views
from torch.nn.functional import cross_entropy, normalize
from torch.optim import SGD

from selfsight.batches import MultiCrop
from selfsight.engine.machine import Machine
from selfsight.engine.optimisers import LateSGD
from selfsight.engine.update import Updater
from selfsight.method import Objective, drive
from selfsight.methods.pic import PIC
from selfsight.parts import heads
from selfsight.parts.rows import Rows
from selfsight.recipes.recipe import OptimiserSpec, Recipe, decay_all
from selfsight.schedules import constant, cosine
from selfsight.views.pipelines import plain_view

N = 30


def crops(index: list[int], *, small: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32) -> MultiCrop:
    views = [two_views(len(index), seed=seed + k, dtype=dtype).x1 for k in range(1 + small)]
    return MultiCrop((views[0],), tuple(views[1:]), torch.tensor(index))


def pic(recent: int = 12) -> PIC:
    torch.manual_seed(0)
    return PIC(SmallEncoder(), heads.mlp(6, 5, 4, norm=False), Rows(N, 4, std=0.1), temperature=0.2, recent=recent)


def first(method: PIC, batch: MultiCrop) -> Objective:
    """The step's objective, with gradients; then the rest of the step."""
    steps = method.step(batch, clock())
    objective = next(steps)
    method.zero_grad()
    objective.loss.backward()
    with pytest.raises(StopIteration):
        steps.send(True)
    return objective


def cosines(method: PIC, x: torch.Tensor) -> torch.Tensor:
    z = normalize(method.projector(method.encoder(x)), dim=1)
    return z @ normalize(method.classes.weight, dim=1).T / 0.2


def test_the_softmax_runs_over_the_classes_seen_last_and_this_batchs() -> None:
    method = pic()
    for index in ([20, 3, 25, 9], [14, 20, 29, 28]):
        batch = crops(index)
        recent = [*index, *(i for i in method.recent.tolist() if i not in index)][:12]
        logits = cosines(method, batch.large[0])[:, recent]
        expected = cross_entropy(logits, torch.arange(4))
        torch.testing.assert_close(first(method, batch).loss, expected)
        assert method.recent.tolist() == recent
    grad = method.classes.weight.grad
    others = [i for i in range(N) if i not in recent]
    assert (grad[others] == 0).all()
    assert (grad[recent].norm(dim=1) > 0).all()


def test_with_room_for_all_it_is_the_whole_softmax() -> None:
    method, batch = pic(N), crops([4, 17, 8])
    torch.testing.assert_close(
        first(method, batch).loss, cross_entropy(cosines(method, batch.large[0]), torch.tensor([4, 17, 8]))
    )


def test_small_crops_teach_the_encoder_and_not_the_classes() -> None:
    method, batch = pic(), crops([4, 17, 8], small=2)
    objective = first(method, batch)
    grad = method.classes.weight.grad.clone()
    recent = method.recent.tolist()
    losses = [cross_entropy(cosines(method, x)[:, recent], torch.arange(3)) for x in (*batch.large, *batch.small)]
    torch.testing.assert_close(objective.loss, sum(losses) / 3)
    (large_alone,) = torch.autograd.grad(losses[0] / 3, method.classes.weight)
    torch.testing.assert_close(grad, large_alone)
    parameters = list(method.encoder.parameters())
    for small in losses[1:]:
        assert any(g.norm() > 0 for g in torch.autograd.grad(small, parameters, retain_graph=True))


def test_no_weights_gradient_lies_along_it() -> None:
    """Sheet 9, check c."""
    method = pic().double()
    first(method, crops([4, 17, 8], dtype=torch.float64))
    w, g = method.classes.weight, method.classes.weight.grad
    assert g.norm() > 0.1
    assert (g * w).sum(dim=1).abs().max() < 1e-12


def trained(build: type, steps: int = 30) -> PIC:
    method = pic(8).double()
    main = OptimiserSpec(build=SGD, lr=constant(0.05), weight_decay=constant(0.0), groups=decay_all)

    def momentum(*given, **options):
        return build(*given, momentum=0.9, **options)

    classes = OptimiserSpec(build=momentum, lr=cosine(0.3, 0.01), weight_decay=constant(0.01), groups=decay_all)
    recipe = Recipe(
        method=method,
        views=plain_view(8, None),
        optimisers={"main": main, "classes": classes},
        epochs=1,
        batch_size=4,
    )
    updater = Updater(recipe, Machine(torch.device("cpu"), 0, 1, "32", torch.enable_grad), 1)
    generator = torch.Generator().manual_seed(0)
    for k in range(steps):
        now = clock(k, steps)
        updater.begin(now, first=True, last=True)
        index = torch.randperm(N, generator=generator)[:4].tolist()
        drive(method.step(crops(index, seed=k, dtype=torch.float64), now), updater)
    return method


def test_weights_that_come_back_are_where_sgd_would_have_them() -> None:
    """The correction: training with late updates is training with SGD on all weights, encoder and all."""
    late, dense = trained(LateSGD), trained(SGD)
    for (name, a), b in zip(late.encoder.named_parameters(), dense.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)
    everything = torch.arange(N)
    assert not torch.allclose(late.classes.weight, dense.classes.weight), "no weight was late"
    torch.testing.assert_close(late.classes(everything), dense.classes(everything), rtol=1e-9, atol=1e-11)


def test_a_checkpoint_has_the_recent_classes_and_the_optimisers_are_two() -> None:
    method = pic()
    assert "recent" in method.state_dict()
    named = {name: [key for key, _ in pairs] for name, pairs in method.trainables().items()}
    assert named["classes"] == ["classes.weight"]
    assert "classes.weight" not in named["main"]
    assert len(named["main"]) + 1 == len(list(method.parameters()))


def test_what_it_hands_over() -> None:
    method, batch = pic(), crops([4, 17, 8], small=1)
    weights = normalize(method.classes.weight[batch.index].detach(), dim=1)
    objective = first(method, batch)
    assert objective.by == ("main", "classes")
    watch = objective.watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (3, 6), "projection": (6, 4)}
    torch.testing.assert_close(watch["projection"][3:], weights)


def test_too_few_recent_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="31 recent classes out of 30"):
        pic(31)
    with pytest.raises(ValueError, match="3 new indices do not fit among the last 2"):
        first(pic(2), crops([4, 17, 8]))
