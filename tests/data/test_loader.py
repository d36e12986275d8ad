"""Batches: the same for any number of workers and ranks; the unreadable replaced and named; memory flat."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsight.data.loader import Loader, Micro, plain_batches
from selfsight.data.order import SlidingWindow
from selfsight.data.protocol import DataError, Unreadable, one_by_one
from selfsight.data.splits import Chosen
from selfsight.keyed import Key, uniforms, words


class Drawn:
    """A source of drawn images: of one small size, or ``large``, of several. Those in ``broken`` cannot be read."""

    name, classes = "drawn", ()

    def __init__(self, n: int, *, large: bool = False, broken: tuple[int, ...] = ()) -> None:
        self.n, self.large, self.broken, self.labels = n, large, broken, None
        self.native = None if large else (3, 8, 8)
        self.fingerprint = f"drawn {n} {large} {broken}"

    def __len__(self) -> int:
        return self.n

    def read(self, position: int) -> np.ndarray:
        if position in self.broken:
            raise Unreadable("is broken")
        size = (3, 20 + position % 5, 30) if self.large else (3, 8, 8)
        return np.random.default_rng(position).integers(0, 256, size).astype(np.uint8)

    def read_many(self, positions: np.ndarray) -> list:
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        return f"image {position}"


class Corner:
    """Two crop sizes: a planned 6 x 6 box and a planned 4 x 4 box seen twice."""

    def plan(self, key: Key) -> dict[str, torch.Tensor]:
        return {"u": uniforms(key, "corner", 4)}

    def cut(self, images: list[torch.Tensor], plan: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        assert len(plan["u"]) == len(images)
        large, small = [], []
        for image, (y, x, v, w) in zip(images, (plan["u"] * 10).int().tolist(), strict=True):
            large.append(image[None, :, y : y + 6, x : x + 6])
            small.append(torch.stack([image[:, v : v + 4, w : w + 4]] * 2))
        return [torch.stack(large), torch.stack(small)]

    def render(self, images, plan, key):
        raise AssertionError("the loader renders nothing")

    @property
    def plain(self) -> "Corner":
        return self


def loader(source: Drawn | Chosen, **options) -> Loader:
    return Loader(source, Corner(), **{"batch_size": 12, "seed": 5, "workers": 0, **options})


def stacks(micro: Micro) -> list[torch.Tensor]:
    return micro.images if isinstance(micro.images, list) else [micro.images]


def assert_same(found: list[Micro], expected: list[Micro]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.step, a.micro, a.key.seed) == (b.step, b.micro, b.key.seed)
        torch.testing.assert_close((a.key.epoch, a.key.index), (b.key.epoch, b.key.index), rtol=0, atol=0)
        torch.testing.assert_close(stacks(a), stacks(b), rtol=0, atol=0)


@pytest.mark.parametrize("large", [False, True])
def test_images_and_keys_belong_together(large: bool) -> None:
    source = Drawn(40, large=large, broken=tuple(range(0, 40, 3)))  # a substitute's plan is its own, too
    seen = list(loader(source, accumulate=2).stream(2, 5))
    assert [(m.step, m.micro) for m in seen] == [(2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]
    for micro in seen:
        assert micro.key.seed == 5
        assert micro.key.epoch.tolist() == [micro.step // 3] * 6
        plan = Corner().plan(micro.key)["u"]
        for row, position in enumerate(micro.key.index.tolist()):
            image = torch.from_numpy(source.read(position))
            whole = [cut[0] for cut in Corner().cut([image], {"u": plan[row : row + 1]})] if large else [image]
            torch.testing.assert_close([stack[row] for stack in stacks(micro)], whole, rtol=0, atol=0)


@pytest.mark.parametrize("large", [False, True])
def test_a_stream_may_begin_anywhere(large: bool) -> None:
    source = Drawn(40, large=large, broken=(1, 7))
    whole = list(loader(source).stream(0, 8))
    assert_same(list(loader(source).stream(5, 8)), whole[5:])
    one = loader(source)
    assert_same([*one.stream(0, 4), *one.stream(4, 8)], whole)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 2)])
def test_ranks_join_to_one_process(large: bool, world: int, accumulate: int) -> None:
    source = Drawn(30, large=large, broken=(4,))
    whole = list(loader(source).stream(0, 5))
    ranks = [list(loader(source, rank=r, world=world, accumulate=accumulate).stream(0, 5)) for r in range(world)]
    for step, expected in enumerate(whole):
        parts = [ranks[r][step * accumulate + m] for m in range(accumulate) for r in range(world)]
        assert torch.cat([part.key.index for part in parts]).tolist() == expected.key.index.tolist()
        joined = [torch.cat(same) for same in zip(*map(stacks, parts), strict=True)]
        torch.testing.assert_close(joined, stacks(expected), rtol=0, atol=0)


@pytest.mark.parametrize("large", [False, True])
def test_views_are_keyed_by_the_window_s_round(large: bool) -> None:
    """An image that an epoch shows twice, in two windows, has other views the second time."""
    source, order = Drawn(60, large=large, broken=(4,)), SlidingWindow(24, 12)
    whole = list(loader(source, order=order).stream(0, 10))
    assert [micro.key.epoch.tolist() for micro in whole] == [[step // 2] * 12 for step in range(10)]
    seen = [(e, i) for micro in whole for e, i in zip(micro.key.epoch.tolist(), micro.key.index.tolist(), strict=True)]
    first_epoch = [i for _, i in seen[:60]]
    assert len(set(first_epoch)) < 60
    assert_same(list(loader(source, order=order).stream(5, 10)), whole[5:])


def test_workers_change_nothing() -> None:
    source = Drawn(90, large=True, broken=(3, 11, 12))
    skipped: dict[int, list] = {0: [], 2: []}
    found = {}
    for workers in (0, 2):
        one = loader(source, batch_size=40, workers=workers, on_skip=lambda *skip, to=skipped[workers]: to.append(skip))
        abandoned = one.stream(0, 9)
        next(abandoned)  # a sweep left half-way leaves nothing behind in the workers
        found[workers] = list(one.stream(1, 5))
        assert_same(list(one.stream(4, 6)), list(loader(source, batch_size=40).stream(4, 6)))
        one.close()
    assert_same(found[2], found[0])
    assert skipped[2] == skipped[0]
    assert {position for position, _, _ in skipped[0]} == {3, 11, 12}


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = loader(Drawn(30, large=True), workers=1)
    next(one.stream(0, 1))
    one.close()
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize("large", [False, True])
def test_an_unreadable_image_is_replaced_by_key_and_named_once(large: bool) -> None:
    whole = list(loader(Drawn(40, large=large)).stream(0, 6))
    skips: list[tuple[int, str, str]] = []
    source = Drawn(40, large=large, broken=(6, 21))
    found = list(loader(source, on_skip=lambda *skip: skips.append(skip)).stream(0, 6))
    assert sorted(skips) == [(6, "image 6", "is broken"), (21, "image 21", "is broken")]
    replaced = 0
    for a, b in zip(found, whole, strict=True):
        for now, before in zip(a.key.index.tolist(), b.key.index.tolist(), strict=True):
            if before in (6, 21):
                drawn = words(5, np.array([a.step // 3]), np.array([before]), "substitute", 8)[0] % np.uint64(40)
                assert now == next(int(d) for d in drawn if d not in (6, 21))
                replaced += 1
            else:
                assert now == before
    assert replaced >= 2


@pytest.mark.parametrize("large", [False, True])
def test_one_readable_image_is_enough_and_none_is_an_error(large: bool) -> None:
    broken = tuple(range(39))
    (micro,) = loader(Drawn(40, large=large, broken=broken)).stream(0, 1)
    assert micro.key.index.tolist() == [39] * 12
    for workers in (0, 1):
        dead = loader(Drawn(40, large=large, broken=(*broken, 39)), workers=workers)
        with pytest.raises(DataError, match=r"none of the 40 images can be read; the one at \d+ is broken") as error:
            next(dead.stream(0, 1))
        assert "Traceback" not in str(error.value)
        dead.close()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_plain_sweep_shows_every_readable_image_once_in_order(large: bool, workers: int) -> None:
    broken = (0, *range(5, 12), 39)
    source = Drawn(41, large=large, broken=broken)
    seen, skips = [], []
    for rank in range(3):
        for images, key in plain_batches(
            source,
            Corner(),
            batch_size=5,
            rank=rank,
            world=3,
            workers=workers,
            on_skip=lambda *skip: skips.append(skip),
        ):
            first = images[0] if isinstance(images, list) else images
            assert len(first) == len(key.index) <= 5
            assert key.epoch.tolist() == [0] * len(key.index)
            if not large:
                expected = np.stack([source.read(p) for p in key.index.tolist()])
                torch.testing.assert_close(images, torch.from_numpy(expected), rtol=0, atol=0)
            seen += key.index.tolist()
    assert seen == [p for p in range(41) if p not in broken]
    assert [position for position, _, _ in skips] == sorted(broken)


def test_a_plain_sweep_of_nothing_readable_is_an_error() -> None:
    for large in (False, True):
        with pytest.raises(DataError, match="none of 4 images of drawn can be read; image 0 is broken"):
            list(plain_batches(Drawn(4, large=large, broken=(0, 1, 2, 3)), Corner(), batch_size=3))


@pytest.mark.parametrize("large", [False, True])
def test_a_share_of_nothing_readable_ends_no_sweep_of_several(large: bool) -> None:
    source = Drawn(4, large=large, broken=(0, 1))
    shares = [plain_batches(source, Corner(), batch_size=3, rank=rank, world=2) for rank in range(2)]
    assert [[key.index.tolist() for _, key in share] for share in shares] == [[], [[2, 3]]]


def test_parts_of_a_source_share_its_cache(tmp_path: Path) -> None:
    source = Drawn(40)
    for positions in (np.arange(5, 25), np.arange(10, 40)):
        part = Chosen(source, positions, name="part")
        for images, key in plain_batches(part, Corner(), batch_size=8, cache_dir=tmp_path):
            expected = np.stack([source.read(int(positions[p])) for p in key.index])
            torch.testing.assert_close(images, torch.from_numpy(expected), rtol=0, atol=0)
    assert len(list((tmp_path / "decoded").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("handled", [True, False])
def test_ctrl_c_reaches_all_processes_and_leaves_none(tmp_path: Path, handled: bool) -> None:
    """A run that handles the signal goes on loading until it has saved; one that doesn't ends with its workers."""
    script = f"""
import signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loader import Drawn, loader
if __name__ == "__main__":
    told = []
    # said in both cases: what a shell starts in the background ignores the signal
    signal.signal(signal.SIGINT, (lambda *_: told.append(1)) if {handled} else signal.default_int_handler)
    one = loader(Drawn(400, large=True), workers=2)
    left = 40
    for i, micro in enumerate(one.stream(0, 10**6)):
        if i == 3:
            print(*(w.pid for w in one._workers._running._workers), flush=True)
        left -= bool(told)
        if not left:
            break
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    child = subprocess.Popen([sys.executable, str(path)], **options)
    assert child.stdout is not None
    try:
        workers = [int(pid) for pid in child.stdout.readline().split()]
        assert len(workers) == 2
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == (0 if handled else -signal.SIGINT), errors
    assert ("KeyboardInterrupt" in errors) == (not handled)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_private_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """1,000 and 11,000 images of 3 kB, each read once: 30 MB more data, and no more than 5 MB of private memory."""

    def private(n: int) -> int:
        script = f"""
import numpy as np, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loader import Corner, Drawn
from selfsight.data.loader import plain_batches

class Flat(Drawn):
    def __init__(self, n):
        super().__init__(n)
        self.native, self.fingerprint = (3, 32, 32), f"flat{{n}}"
    def read(self, position):
        return np.full((3, 32, 32), position % 251, dtype=np.uint8)

for images, key in plain_batches(Flat({n}), Corner(), batch_size=500, cache_dir=Path({str(tmp_path)!r})):
    assert (images[:, 0, 0, 0].numpy() == key.index.numpy() % 251).all()
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")))
"""
        out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
        return int(out.stdout)

    assert abs(private(11_000) - private(1_000)) < 5_000
