"""Folders and names that nobody expects: links in circles, folders that may not be read, names that are no text."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from broken_images import encoded, scene
from trials import tried

from selfsight.cli import main
from selfsight.data.folder import open_folder
from selfsight.data.listing import labelled, open_list
from selfsight.data.opening import open_data
from selfsight.data.protocol import DataError, Unreadable

LINKS = "links in circles, pipes, devices and folders named like images neither stop nor hold a run"
CLOSED = "what may not be read is told in one line, or unreadable by itself"
NAMES = "an image is read whatever bytes its name has, and told by a name that can be printed"

PNG = encoded(scene(), "PNG")


def test_links_pipes_and_devices(tmp_path: Path, promise) -> None:
    kept = promise(LINKS)
    (tmp_path / "sound.png").write_bytes(PNG)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "up").symlink_to("../..")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "down" / "up").unlink()
    (tmp_path / "down" / "up").symlink_to("..")
    with open(tmp_path / "huge.bmp", "wb") as file:
        file.truncate(1 << 40)
    expected = {
        "sound.png": "",
        "self.png": "OSError",
        "a.png": "OSError",
        "b.png": "OSError",
        "zero.jpg": "is no ordinary file",
        "pipe.png": "is no ordinary file",
        "huge.bmp": "has 1,099,511,627,776 bytes, more than the limit",
    }

    def found(_: int) -> dict[str, str]:
        source = open_folder(tmp_path)
        read = source.read_many(np.arange(len(source)))
        return {source.where(i): str(image) if isinstance(image, Unreadable) else "" for i, image in enumerate(read)}

    (answer,) = tried([0], found, seconds=30)
    kept(isinstance(answer, dict) and answer.keys() == expected.keys(), str(answer))
    assert isinstance(answer, dict)
    for name, reason in expected.items():
        kept(reason in answer[name] if reason else answer[name] == "", f"{name}: {answer[name]}")


@contextmanager
def without_privilege() -> Iterator[None]:
    """As a user whom the system denies files: the superuser gives up, meanwhile, the right to read everything."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        pytest.skip("the system has no capabilities to give up")
    effective = data[0]
    data[0] = effective & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, data):
        pytest.skip("the system's capabilities cannot be given up")
    try:
        yield
    finally:
        data[0] = effective
        libc.capset(header, data)


def test_what_may_not_be_read(tmp_path: Path, promise, capsys: pytest.CaptureFixture[str]) -> None:
    kept = promise(CLOSED)
    for name in ("open/sound.png", "open/closed.png", "whole/closed/a.png", "whole/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "list.txt").write_text("open/sound.png\n")
    (tmp_path / "open" / "closed.png").chmod(0)
    (tmp_path / "whole" / "closed").chmod(0)
    (tmp_path / "list.txt").chmod(0)
    try:
        with without_privilege():
            source = open_folder(tmp_path / "open")
            images = source.read_many(np.arange(2))
            reasons = [str(image) for image in images if isinstance(image, Unreadable)]
            kept(len(reasons) == 1 and "Permission denied" in reasons[0], str(reasons))
            for data, told in (("whole", "cannot list"), ("list.txt", "cannot read")):
                with pytest.raises(SystemExit) as left:
                    main(["pretrain", "simclr", "--data", str(tmp_path / data), "--out", str(tmp_path / "run")])
                said = capsys.readouterr().err.splitlines()
                kept(left.value.code == 2 and len(said) == 1 and told in said[0] and data in said[0], f"{data}: {said}")
    finally:
        (tmp_path / "whole" / "closed").chmod(0o755)


ODD = [
    b"a\nb.png",
    b"a\r\nb.png",
    b"\xff\xfe.png",
    b"\xed\xa0\x80.png",
    b"\x1b[31m\x07.png",
    b"<script>alert(1)<script>.png",
    b"-rf *.png",
    b"$(touch owned).png",
    b'"quoted", and; more.png',
    b"%s %n {0}.png",
    b"a  b.png",
    "\u2028\x85\u202egnp.png".encode(),
    b"a" * 251 + b".png",
]


def test_names_of_any_bytes(tmp_path: Path, promise) -> None:
    kept = promise(NAMES)
    folder = tmp_path / os.fsdecode(b"odd\xff\nfolder")
    folder.mkdir()
    for name in ODD:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(PNG)
    listed = folder / "list.csv"
    rows = (b'"' + name.replace(b'"', b'""') + b'",7\r\n' for name in ODD)
    with open(listed, "wb") as file:
        file.write(b"path,label\r\n" + b"".join(rows))
    lines = folder / "list.txt"
    with open(lines, "wb") as file:  # of which a name with an end of line in it cannot be one
        file.write(b"".join(name + b"\n" for name in ODD if b"\n" not in name))
    whole, by_list, by_line = open_folder(folder), open_list(listed), open_list(lines)
    of_lines = sum(b"\n" not in name for name in ODD)
    for source, of in ((whole, len(ODD)), (by_list, len(ODD)), (by_line, of_lines)):
        kept(len(source) == of, f"{source.name!r}: {len(source)} of {of}")
        for i, image in enumerate(source.read_many(np.arange(len(source)))):
            where = source.where(i)
            where.encode()  # a surrogate would not be text
            if source is by_list and "\r" in os.fsdecode(ODD[i]):
                continue  # a CSV's own ends of line, within a name as well, are read as one
            kept(not isinstance(image, Unreadable), f"{where!r}: {image!r}"[:200])
    again = labelled(whole, listed)
    kept(again.labels is not None and int((again.labels == 0).sum()) >= len(ODD) - 2, str(again.labels))


def test_a_run_among_odd_names(tmp_path: Path, promise, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders whose names are no text, for data and for the run: its messages and its run.yaml hold them."""
    kept = promise(NAMES)
    data, out = tmp_path / os.fsdecode(b"im\xff\nages"), tmp_path / os.fsdecode(b"r\xfen")
    for i in range(16):
        path = data / os.fsdecode(b"\xe9one") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    small = ["--image-size", "16", "--backbone", "tiny_cnn", "--batch-size", "8", "--epochs", "1", "--workers", "0"]
    words = ["pretrain", "simclr", "--data", str(data), "--out", str(out), *small, "--logger", "none"]
    main(words)
    said = capsys.readouterr().out
    kept("done:" in said and (out / "encoder.safetensors").exists() and (out / "report.html").exists(), said)
    main(["evaluate", str(out), "--protocol", "quality"])
    kept((out / "evaluation" / "quality.json").exists(), "evaluation")
    main(["pretrain", "--from", str(out / "run.yaml"), "--out", str(tmp_path / "again"), "--no-report"])
    kept(
        (tmp_path / "again" / "encoder.safetensors").read_bytes() == (out / "encoder.safetensors").read_bytes(), "again"
    )


@pytest.mark.parametrize("spec", ["", "~no-such-user/images", "world:" + "9" * 5000, "world:2000000000", "cifar10:\0"])
def test_data_that_is_no_name(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        open_data(spec)
