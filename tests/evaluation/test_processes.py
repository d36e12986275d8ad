"""Two processes give what one gives: features gathered in order, one embedded file, one classifier, one set
of a teacher's answers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

WORK = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
from dataclasses import replace
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
from conftest import Pictures, Teacher, TinyEncoder
from selfsight.errors import UserError
from selfsight.evaluation import answers
from selfsight.distributed import rank, world_size
from selfsight.evaluation.embed import embed
from selfsight.evaluation.evaluate import evaluate
from selfsight.evaluation.attentive import attentive
from selfsight.evaluation.features import extract
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.linear_sgd import linear_sgd
from selfsight.evaluation.processes import meet, processes
from selfsight.evaluation.subject import crop_of
from selfsight.views.pipelines import plain_view

out, plain = Path(sys.argv[2]), plain_view(16, None)
torch.set_num_threads(1)
torch.manual_seed(0)
encoder = TinyEncoder()
source, test = Pictures(41, broken=(5, 40)), Pictures(30, seed=1)
with processes("cpu"):
    x = extract(encoder, source, plain, batch_size=8)
    scores = {}
    for paper in ("moco", "mae"):
        lesson = Lesson(
            train=Pictures(40), test=test, crop=crop_of(plain), plain=plain, classes=4, epochs=2, batch_size=20, lr=1.0
        )
        scores[paper] = linear_sgd(encoder, lesson, paper=paper)[0].row()
    kept = {"scores": scores["moco"], "attentive": attentive(encoder, replace(lesson, lr=None))[0].row()}
    torch.save({"x": x.x, "positions": x.positions, "labels": x.labels, **kept}, out / f"{rank()}.pt")
    assert world_size() == int(sys.argv[3])
assert not torch.distributed.is_initialized()

def answered(scale):
    how = {"device": "cpu", "workers": 0, "part": 9}
    return answers.write_answers(Teacher(scale, plain), source, np.arange(40), out / "answers", **how)

alone, first = sys.argv[3] == "1", os.environ["RANK"] == "0"
assert answered(1.0) == "done"
kept = answers.write_atomically, Path.unlink, answers.interruption

def elsewhere(path, **how):
    assert path.parent.name != "answers"
    kept[1](path, **how)

if not first:  # the others neither clear nor write, and what stops one of them stops all
    answers.write_atomically, Path.unlink = None, elsewhere
    answers.interruption = lambda: nullcontext(lambda: True)
assert answered(2.0) == ("done" if alone else "stopped")
answers.interruption = kept[2]
assert answered(2.0) == "done"
found = answers.read_answers(out / "answers")
places, told = map(torch.from_numpy, (found.positions, found.rows(np.arange(39))))
torch.save({"places": places, "told": told}, out / f"told-{os.environ['RANK']}.pt")
with processes("cpu") as place:
    meet(place)  # both have read
if first:
    (out / "answers" / "answers.json").write_text("[")
try:
    answered(2.0)
    raise AssertionError("damaged facts were taken")
except UserError:  # by all of them
    answers.write_atomically, Path.unlink, _ = kept
for name in ("f.npy", "f.parquet"):
    got = embed(encoder, data=source, out=out / name, batch_size=4, plain=plain)
    assert (got.rows, got.shape, got.skipped) == (39, (32,), 2)
"""

AGAIN = """
import os, sys, time
from pathlib import Path
import torch
from selfsight import distributed
from selfsight.evaluation.processes import processes

met = []
for _ in range(3):
    with processes("cpu"):
        met.append(int(distributed.total(torch.tensor(distributed.rank() + 1))))
        time.sleep(1.0 - distributed.rank())  # the other process is at the next group while this one is in the last
Path(sys.argv[2], os.environ["RANK"]).write_text(str(met))
"""


def run(processes: int, script: Path, out: Path) -> None:
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(script), str(Path(__file__).parent), str(out), str(processes)]
    children = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True))
    try:
        for child in children:
            _, said = child.communicate(timeout=240)
            assert child.returncode == 0, said
    finally:
        for child in children:  # one that hangs must not take the processor from the tests after this
            child.kill()
            child.communicate()


@pytest.mark.slow
def test_a_quick_process_waits_in_the_next_group_and_not_in_the_last(tmp_path: Path) -> None:
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    run(2, script, tmp_path / "out")
    assert [path.read_text() for path in sorted((tmp_path / "out").iterdir())] == ["[3, 3, 3]"] * 2


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - named in the script too

    script = tmp_path / "work.py"
    script.write_text(WORK)
    for processes in (1, 2):
        run(processes, script, tmp_path / str(processes))
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
    expected = [i for i in range(41) if i not in (5, 40)]
    for got in (one, first, second):
        assert got["positions"].tolist() == expected
        assert torch.allclose(got["x"], one["x"], atol=1e-6)
        assert torch.equal(got["labels"], one["labels"])
        for name in ("scores", "attentive"):
            assert got[name]["top1"] == pytest.approx(one[name]["top1"], abs=0.04)  # one image of 30
    for name in ("f.npy", "f.npy.csv", "f.parquet"):
        assert (tmp_path / "2" / name).exists()
    assert np.allclose(np.load(tmp_path / "2/f.npy"), one["x"].numpy(), atol=1e-6)
    table = pq.read_table(tmp_path / "2/f.parquet")
    assert table["position"].to_pylist() == expected
    assert np.allclose(np.stack(table["feature"].to_numpy(zero_copy_only=False)), one["x"].numpy(), atol=1e-6)
    assert (tmp_path / "2/f.npy.csv").read_text() == (tmp_path / "1/f.npy.csv").read_text()
    alone, left, right = (torch.load(tmp_path / f"{name}.pt") for name in ("1/told-0", "2/told-0", "2/told-1"))
    for got in (left, right):
        assert got["places"].tolist() == alone["places"].tolist() == [i for i in range(40) if i != 5]
        assert torch.allclose(got["told"], alone["told"], atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        ["0.pt", "1.pt", "answers", "f.npy", "f.npy.csv", "f.parquet", "told-0.pt", "told-1.pt"]
    )
