"""Image files that are cut, flipped, spliced, mislabelled or made to do harm: each is an image or a line, and a run
over all of them ends well."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from broken_images import bombs, corpus, encoded, scene
from PIL import Image
from surroundings import changed, listing, started
from trials import Died, tried

from selfsight.cli import main
from selfsight.data.decoding import decode, probe
from selfsight.data.folder import open_folder
from selfsight.data.protocol import Unreadable
from selfsight.data.workers import key_of
from selfsight.recipes import catalogue

READER = "no image file crashes its reader or keeps it for 30 s"
EITHER = "an image file is 8-bit RGB or unreadable, for a reason of one line"
HEADER = "an image that can be read has the size that its header was surveyed with"
CUT = "an image that can be read can be cut into views, be it 1 px or 20,000"
INSIDE = "nothing is written outside the run's folder and the cache, started or asked of the network"
ENDS = "a run over a mixture of sound and broken images ends well"
NAMED = "skipped.csv names what could not be read and nothing else"
STOPS = "a run without a readable image stops with one line"


class Outcome(NamedTuple):
    """What reading one file came to."""

    shape: tuple[int, ...] | None
    sound: bool
    reason: str | None
    surveyed: tuple[int, int, int] | None
    cut: str


@pytest.mark.parametrize("n", [pytest.param(400, id="400"), pytest.param(6000, id="6000", marks=pytest.mark.trust)])
def test_an_image_or_a_reason(n: int, tmp_path: Path, promise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {case.name: case for case in corpus(n)}
    (tmp_path / "images").mkdir()
    for case in cases.values():
        (tmp_path / "images" / case.name).write_bytes(case.content)
    source = open_folder(tmp_path / "images", channels=3)
    assert len(source) == n
    before = listing(tmp_path)
    views = catalogue.tiny("simclr").views

    def outcome(position: int) -> Outcome:
        try:
            surveyed = probe(source.index.full(position))
        except Unreadable:
            surveyed = None
        image = source.read_many(np.array([position]))[0]
        if isinstance(image, Unreadable):
            return Outcome(None, False, str(image), surveyed, "")
        sound = image.dtype == np.uint8 and image.ndim == 3 and len(image) == 3 and image.size > 0
        stacks = views.cut([torch.from_numpy(image)], views.plan(key_of(0, 0, np.array([position]))))
        wrong = [tuple(stack.shape) for stack in stacks if stack.dtype != torch.uint8 or stack.shape[-2:] != (32, 32)]
        return Outcome(image.shape, sound, None, surveyed, str(wrong) if wrong else "")

    lives, either, header, cut = promise(READER), promise(EITHER), promise(HEADER), promise(CUT)
    for position, found in enumerate(tried(range(n), outcome, seconds=30)):
        name = source.where(position)
        case = f"{name} ({cases[name].kind})"
        lives(not isinstance(found, Died), f"{case}: {found}")
        if isinstance(found, Died):
            continue
        line = found.reason is not None and 0 < len(found.reason) <= 300 and found.reason.isprintable()
        either(found.sound if found.reason is None else line, f"{case}: {found}")
        if found.reason is None:
            header(found.surveyed == found.shape, f"{case}: {found}")
            cut(not found.cut, f"{case}: {found}")
    promise(INSIDE)(not changed(before, listing(tmp_path)), str(changed(before, listing(tmp_path))))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["Pillow's limit", "no limit of Pillow's"])
def test_a_bomb_is_refused_before_it_fills_memory(limit: int | None, promise, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit is a variable that any library may lift."""
    refused = promise("a file that claims more pixels than the limit is refused with hardly any memory")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for suffix, content in bombs():
        for read in (decode, probe):
            (found,) = tried([content], lambda content, read=read: growth(read, content), seconds=30)
            peak, reason = (0, "") if isinstance(found, Died) else found
            why = "limit of 178" in reason or (suffix == ".npy" and bool(reason))  # which is shorter than it claims
            refused(why and peak < 64 << 20, f"{suffix} by {read.__name__}: {reason or found}, {peak}")


def growth(read: Callable[[bytes], object], content: bytes) -> tuple[int, str]:
    """How many bytes reading took at its highest, and the reason why nothing was read."""
    before, reason = high_water(), ""
    try:
        read(content)
    except Unreadable as error:
        reason = str(error)
    return high_water() - before, reason


def high_water() -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def mixture(folder: Path, *, sound: int, broken: int) -> None:
    """A folder that nobody should have: every kind of damage, names that are no text, links in circles, a pipe."""
    inside = folder / "one"
    inside.mkdir(parents=True)  # one folder is no label: all images are for training
    for i in range(sound):
        (inside / f"sound{i}.png").write_bytes(encoded(scene(40 + i % 9, 44), "PNG"))
    for case in corpus(200 + broken):
        if int(case.name[:5]) >= 200 - broken // 2:
            (inside / case.name).write_bytes(case.content)
    for name in (b"a\nb.png", b"\xff\xfe.png", b"\x1b[31mred.png", b"<img src=x onerror=alert(1)>.png", b"-rf *.png"):
        for content, ending in ((encoded(scene(), "PNG"), b""), (b"no picture", b".jpg")):
            with open(os.path.join(os.fsencode(inside), name + ending), "wb") as file:
                file.write(content)
    (folder / "self").symlink_to(folder / "self")
    (folder / "self.png").symlink_to(folder / "self.png")
    (inside / "up").symlink_to(folder)
    (inside / "gone.jpg").symlink_to(folder / "nowhere")
    (inside / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe.jpg")
    (inside / "folder.png").mkdir()
    with open(inside / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    (inside / "broken.tar").write_bytes(b"ustar" + bytes(600))


def really_broken(folder: Path) -> tuple[set[str], int]:
    """The images of the folder that cannot be read, each by itself, and how many there are in all."""
    source = open_folder(folder)
    answers = tried(
        range(len(source)), lambda i: isinstance(source.read_many(np.array([i]))[0], Unreadable), seconds=60
    )
    return {source.where(i) for i, broken in enumerate(answers) if broken is True}, len(source)


def skipped(run: Path) -> list[str]:
    with open(run / "skipped.csv", newline="", encoding="utf-8") as lines:
        return [row["where"] for row in csv.DictReader(lines)]


def words(data: Path, out: Path, *more: str) -> list[str]:
    small = ["--image-size", "16", "--backbone", "tiny_cnn", "--batch-size", "16", "--probe-every", "0"]
    return ["pretrain", "simclr", "--data", str(data), "--out", str(out), *small, *more]


@pytest.mark.parametrize(
    ("sound", "broken", "more"),
    [
        (24, 40, ("--epochs", "1", "--workers", "0", "--no-report", "--logger", "none")),
        pytest.param(60, 120, ("--epochs", "3", "--workers", "2"), marks=pytest.mark.trust),
        pytest.param(1, 300, ("--epochs", "2", "--workers", "2", "--no-report"), marks=pytest.mark.trust),
    ],
)
def test_a_run_over_a_mixture(
    *,
    sound: int,
    broken: int,
    more: tuple[str, ...],
    tmp_path: Path,
    promise,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out, cache = tmp_path / "data", tmp_path / "runs" / "mixed", tmp_path / "cache"
    mixture(data, sound=sound, broken=broken)
    for name in ("home", "here", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SELFSIGHT_CACHE", str(cache))
    lost, n = really_broken(data)
    before = listing(tmp_path, without=(out, cache))
    with started() as others:
        main(words(data, out, *more))
    said = capsys.readouterr().out
    promise(ENDS)((out / "encoder.safetensors").exists() and "done:" in said, said)
    told = skipped(out)
    drawn = len(lost) - 16  # a last part of an epoch that fills no batch is left out
    promise(NAMED)({*told} <= lost and len(told) == len({*told}) >= drawn, f"{len(told)} of {len(lost)} of {n}")
    promise(NAMED)(f"{len(told)} of {n} images could not be read" in said, said)
    after = changed(before, listing(tmp_path, without=(out, cache)))
    promise(INSIDE)(not after and not others, f"{after} {others}")
    if (out / "report.html").exists():
        page = (out / "report.html").read_text(encoding="utf-8")
        promise("a report shows names as text")("<img src=x" not in page and "\x1b[31m" not in page, "report.html")


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.trust)])
def test_a_run_without_a_readable_image(
    workers: str, tmp_path: Path, promise, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sound headers before broken pixels: found when training begins. And no header at all: found when it is asked."""
    stops = promise(STOPS)
    png = encoded(scene(100, 90), "PNG")
    for name, content in (("pixels", png[: len(png) // 2]), ("headers", b"no picture")):
        for i in range(40):
            path = tmp_path / name / f"a\n{i}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        with pytest.raises(SystemExit) as left:
            main(words(tmp_path / name, tmp_path / "run", "--epochs", "1", "--workers", workers, "--overwrite"))
        said = [line for line in capsys.readouterr().err.splitlines() if line]
        stops(left.value.code == 2 and len(said) == 1 and "read" in said[0] and "40" in said[0], f"{name}: {said}")
