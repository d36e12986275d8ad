"""An imported checkpoint through the commands: evaluated, embedded, exported, analysed; and what it has not."""

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from published import images, written
from safetensors.torch import load_file

import selfsight
from selfsight.cli import main
from selfsight.engine.start import open_source, prepare
from selfsight.flags import Flags

MAE = ["--heads", "4"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert len(said.splitlines()) == 1, said
    return said


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "runs" / "mae"
    main(["import", str(written("mae", tmp_path)), "--out", str(out), *MAE])
    said = capsys.readouterr().out
    assert f"{out}: MAE: vit_small_patch8_224" in said
    assert "left out: " in said
    assert "decoder (19 tensors, 21,216 numbers)" in said
    return out


def test_the_run_says_where_it_came_from(run):
    settings = yaml.safe_load((run / "run.yaml").read_text())
    facts = json.loads((run / "encoder.json").read_text())
    assert settings["imported"]["file"] == "mae.pth"
    assert re.fullmatch("[0-9a-f]{64}", settings["imported"]["sha256"])
    assert facts["imported"] == settings["imported"]
    assert facts["normalise"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    plain = selfsight.open_run(run).plain
    assert (plain.size, plain.resize, plain.interpolation) == (32, 32, "bicubic")
    words = shlex.split(settings["command"])
    assert words[1:2] == ["import"]
    main([*words[1:], "--overwrite"])
    assert yaml.safe_load((run / "run.yaml").read_text()) == settings


@pytest.mark.parametrize("older", [False, True])
def test_an_import_that_was_killed_is_a_run_to_overwrite(
    older: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights are there; an older run's settings never stand beside them."""
    out = run if older else tmp_path / "new"
    words = [*MAE, "--pool", "mean", "--out", str(out), "--overwrite"]
    seen: list[str] = []

    def killed(encoder: object, folder: Path, **facts: object) -> None:
        seen.append((folder / "run.yaml").read_text())
        assert not (folder / "encoder.safetensors").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("selfsight.importing.checkpoint.save_encoder", killed)
        with pytest.raises(SystemExit):
            main(["import", str(tmp_path / "mae.pth"), *words])
    assert "--pool mean" in seen[0]
    main(["import", str(tmp_path / "mae.pth"), *words])
    assert (out / "run.yaml").read_text() == seen[0]
    assert (out / "encoder.safetensors").exists()


def test_the_view_is_the_official_codes(tmp_path):
    beit = selfsight.import_checkpoint(written("beit", tmp_path), out=tmp_path / "a", image_size=192)
    assert beit.plain.normalise == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (beit.plain.size, beit.plain.resize) == (192, 219)
    clip = selfsight.import_checkpoint(written("clip", tmp_path), out=tmp_path / "b", image_size=192, heads=2)
    assert (clip.plain.size, clip.plain.resize) == (192, 192)
    assert clip.plain.normalise.mean[0] == 0.48145466
    large = selfsight.import_checkpoint(
        written("mae", tmp_path), out=tmp_path / "c", image_size=384, heads=4, scale="half"
    )
    assert (large.plain.size, large.plain.resize) == (384, 384)
    assert large.plain.normalise.mean == (0.5, 0.5, 0.5)
    x = torch.zeros(1, 3, 384, 384)
    assert selfsight.load(large.path)(x).shape == (1, 48)


def test_it_is_evaluated_embedded_exported_and_reported(run, tmp_path, capsys):
    main(["evaluate", str(run), "--data", "world:256", "--protocol", "knn,quality"])
    result = json.loads((run / "evaluation" / "knn.json").read_text())
    assert result["method"] == "imported mae"
    assert {"random", "pixels"} <= result["baselines"].keys()
    main(["embed", str(run), "--data", "world:64", "--out", str(tmp_path / "f.parquet")])
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 76  # the test images too
    main(["export", str(run), "--format", "timm"])
    text = (run / "export" / "timm" / "README.md").read_text()
    assert "The backbone of mae.pth, a checkpoint of MAE." in text
    assert "by selfsight" not in text
    main(["export", str(run), "--format", "huggingface"])
    model = timm.create_model(f"local-dir:{run / 'export' / 'huggingface'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(images("mae").float()), selfsight.load(run)(images("mae").float()), rtol=1e-5, atol=1e-5
        )
    main(["analyse", str(run), "--data", "world:64", "--pictures", "2"])
    assert (run / "analysis" / "analysis.html").exists()
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert "imported mae" in page
    assert "pretrain --from" not in page


@pytest.mark.parametrize("case", ["beit", "simmim_swin", "clip"])
def test_others_load_strictly_into_timm(case, tmp_path):
    run = selfsight.import_checkpoint(
        written(case, tmp_path), out=tmp_path / "run", heads=2 if case == "clip" else None
    )
    folder = selfsight.export(run.path, "timm")
    names = {"timm": timm, "load_file": load_file}
    code = re.search(r"(model = timm.*?\n)", (folder / "README.md").read_text())
    exec(code[1], names)
    names["model"].load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    x = images(case).float()
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(x), selfsight.load(run.path)(x), rtol=1e-5, atol=1e-5)


def test_what_it_has_not(run, tmp_path, capsys):
    assert "has no images of its own; give --data" in refused(["evaluate", str(run)], capsys)
    assert "has no images of its own; give --data" in refused(["embed", str(run)], capsys)
    assert "one set of weights" in refused(["evaluate", str(run), "--data", "world:64", "--which", "best"], capsys)
    assert "was imported" in refused(["evaluate", str(run), "--data", "world:64", "--head-layers", "1"], capsys)
    assert "evaluate --protocol finetune" in refused(["finetune", str(run)], capsys)
    assert "imported checkpoint" in refused(["pretrain", "--from", str(run / "run.yaml")], capsys)
    again = ["pretrain", "mae", "--out", str(run), "--resume", "--data", "world:64", "--image-size", "32"]
    assert "a run of imported mae, not of mae" in refused(again, capsys)
    assert "delete it by --overwrite" in refused(
        ["import", str(written("mae", tmp_path)), "--out", str(run), *MAE], capsys
    )
    with pytest.raises(ValueError, match="no classifier"):
        selfsight.load_classifier(run)
    assert "--layout" in refused(["import", str(written("mae", tmp_path)), "--layout", "swav"], capsys)


@pytest.mark.parametrize(
    ("case", "method", "size"),
    [
        ("simmim_vit", "simmim", 32),
        ("simmim_swin", "simmim_swin", 64),
        ("simmim_swin", "localmim_swin", 64),
        ("beit", "beit", 32),
        ("beit_tuned", "beit", 32),
        ("beit_tuned", "simmim", 32),
        ("mae", "mae", 32),
    ],
)
def test_a_training_goes_on_with_its_backbone(case, method, size, tmp_path):
    """Named by nobody, at the recipe's default options; stopped, gone on with and opened without the import."""
    told = {"layout": case.partition("_")[0], "heads": 4 if case == "mae" else None}
    run = selfsight.import_checkpoint(written(case, tmp_path), **told, out=tmp_path / "run")
    theirs, out, own = selfsight.load(run.path), tmp_path / "new", {}
    how = {"image_size": size, "data": "world:16", "batch_size": 8, "epochs": 1, "precision": "32", "probe_every": 0}
    how |= {"report": False, "device": "cpu", "lr": 1e-12}
    if method == "beit":
        told = selfsight.pretrain("dvae", **how, backbone="dalle_nano", codes=16, out=tmp_path / "dvae")
        own = {"tokenizer": str(told.path)}
    said = []
    begun = selfsight.pretrain(method, **how, **own, init_from=run.path, out=out, max_time="0.001s", say=said.append)
    assert f"begins with the encoder of {run.path}" in said
    assert not begun.finished
    run.path.rename(tmp_path / "gone")
    new = selfsight.pretrain(method, **how, out=out, resume=True)
    assert new.finished
    mine = selfsight.load(new.path)
    assert mine.name == theirs.name
    drop = {"simmim": {"drop_path_rate": 0.1}, "simmim_swin": {"drop_path_rate": 0.0}}
    assert mine.options == theirs.options | drop.get(method.replace("local", "sim"), {})
    for encoder in (mine, new.recipe().method.encoder):
        weights = encoder.state_dict()
        assert weights.keys() == theirs.state_dict().keys()
        for key, x in theirs.state_dict().items():
            torch.testing.assert_close(weights[key], x, rtol=0, atol=1e-6, msg=key)


def test_what_cannot_go_on_is_refused_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    main(["import", str(written("simmim_vit", tmp_path)), "--out", str(run)])
    words = ["pretrain", "simmim", "--init-from", str(run), "--data", "world:16", "--out", str(tmp_path / "new")]
    capsys.readouterr()
    said = refused([*words, "--image-size", "64"], capsys)
    assert "does not fit beit_base_patch16_224 at 64 px: size mismatch" in said
    assert said.endswith("it was built for images of 32 px, try --image-size 32\n")
    words[1] = "localmim_swin"
    assert "needs a Swin, not beit_base_patch16_224" in refused([*words, "--image-size", "32"], capsys)
    words[1] = "mae"
    assert "needs a vision transformer, not beit_base" in refused([*words, "--image-size", "32"], capsys)
    named = ["--backbone", "tiny_cnn", "--image-size", "32"]
    words[1] = "simclr"
    assert "does not fit tiny_cnn at 32 px" in refused([*words, *named], capsys)


def test_a_training_begins_with_its_weights(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(selfsight.build_encoder("resnet18", image_size=64, small_stem=False).model.state_dict(), path)
    run = selfsight.import_checkpoint(path, layout="dino", out=tmp_path / "run")
    how = {"backbone": "resnet18", "image_size": 112, "data": "world:16", "batch_size": 8}
    flags, said = Flags(init_from=run.path, **how), []
    begun = prepare("simclr", flags, {}, open_source(flags), tmp_path / "new", say=said.append)
    theirs = dict(begun.encoder.model.named_parameters())
    assert all(torch.equal(x, theirs[key]) for key, x in selfsight.load(run.path).model.named_parameters())
    assert said == [f"begins with the encoder of {run.path}"]
