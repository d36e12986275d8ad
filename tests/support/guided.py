"""Our own parsers under a fuzzer that is guided by what it has reached: ``python guided.py FOLDER RUNS``.

FOLDER takes the fuzzer's seeds and what it finds. The first byte of an input says which parser gets the rest. A parser
may answer or refuse by its own error; anything else ends the program with a traceback and exit code 77.
"""

import io
import json
import sys
from pathlib import Path


def main(folder: Path, runs: int) -> None:
    import atheris  # noqa: PLC0415 - not on every machine, and all modules here are imported for their doctests

    with atheris.instrument_imports(include=["selfsight.data", "selfsight.flags", "selfsight.engine.run"]):
        from selfsight.data import decoding, listing, splits  # noqa: PLC0415
        from selfsight.data.protocol import DataError, Unreadable  # noqa: PLC0415
        from selfsight.engine.run import read_settings  # noqa: PLC0415
        from selfsight.errors import UserError  # noqa: PLC0415
        from selfsight.flags import flags_from, seconds  # noqa: PLC0415

    scratch = folder / "scratch"
    scratch.mkdir()

    def written(name: str, content: bytes) -> Path:
        (scratch / name).write_bytes(content)
        return scratch / name

    def flags(content: bytes) -> None:
        found = json.loads(content.decode(errors="replace"))
        if isinstance(found, dict):
            flags_from(found).check()

    def sized(content: bytes) -> None:
        found = decoding.jpeg_size(b"\xff\xd8\xff" + content)
        assert found is None or min(found) >= 0

    def shown(content: bytes) -> None:
        image = decoding.decode(content)
        assert image.shape[0] == 3
        assert image.size

    def named(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")
        listing.numbered(text.split("\n"))
        splits.split_of(text)
        seconds(text)

    parsers = (
        sized,
        shown,
        decoding.probe,
        named,
        lambda content: listing.read_rows(written("list.csv", content)),
        lambda content: listing.read_rows(written("list.txt", content)),
        lambda content: read_settings(written("run.yaml", content)),
        flags,
    )

    def one(content: bytes) -> None:
        if not content:
            return
        try:
            parsers[content[0] % len(parsers)](content[1:])
        except (DataError, UserError, Unreadable, json.JSONDecodeError, RecursionError) as error:
            if not str(error):
                raise

    seeds = folder / "seeds"
    seeds.mkdir()
    for i, content in enumerate(_seeds()):
        (seeds / str(i)).write_bytes(content)
    how = [f"-runs={runs}", "-seed=1", "-max_len=900", "-timeout=30", f"-artifact_prefix={folder}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *how, str(seeds)], one)
    atheris.Fuzz()


def _seeds() -> list[bytes]:
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    pictures = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (4, 3), (9, 99, 200)).save(file, kind)
        pictures.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3, 3), np.uint8))
    pictures.append(file.getvalue())
    return [
        b"\x00" + pictures[0][3:],
        *(bytes([at]) + picture for picture in pictures for at in (1, 2)),
        b"\x0312h\n-5\ntrain-00",
        b'\x04path,label\n"a b.png",1\nc.png,-2\n',
        b"\x05a.png\t1\nb c.jpg 17\n",
        b"\x06format: 1\nmethod: simclr\nflags: {data: world, lr: 0.5}\nhyper: {temperature: 0.1}\n",
        b'\x07{"data": "world", "epochs": 3, "lr": 0.5, "logger": ["none"], "device": "cpu"}',
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
