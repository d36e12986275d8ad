"""The page and the documentation's pictures of runs that the engine really made."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import selfsight
from selfsight.report.gather import gather_content
from selfsight.report.sections import all_sections

pytestmark = pytest.mark.slow
SMALL = "--data world:96 --image-size 32 --epochs 2 --batch-size 32 --log-every 1 --device cpu".split()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pretrain(method: str, out: Path, *words: str) -> Path:
    """A run by the real command line."""
    command = [sys.executable, "-m", "selfsight", "pretrain", method, *SMALL, "--out", str(out), *words]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run."""
    folder = pretrain("simclr", tmp_path_factory.mktemp("runs") / "simclr", "--backbone", "small_cnn")
    selfsight.evaluate(folder, protocols=("knn", "quality"), quiet=True)
    selfsight.write_report(folder)
    return folder


def test_every_section_is_filled(finished):
    content = gather_content(finished)
    assert not content.missing
    assert {section.id for section in all_sections(content) if not section.parts} == {"skipped"}
    assert set(content.evaluations) == {"knn", "quality"}
    assert len(content.metrics["loss"]) > 1


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_the_browser_draws_it_without_a_word(finished, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=15000",
    ]
    page = (finished / "report.html").resolve().as_uri()
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}", "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    plots = done.stdout.count('data-figure="')
    assert f'data-drawn="{plots}"' in done.stdout
    assert plots > 6


def test_a_run_stopped_early_and_without_weights_still_has_a_page(finished, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints")
    shutil.rmtree(cut / "evaluation")
    (cut / "encoder.safetensors").unlink()
    content = gather_content(cut)
    assert "map" in content.missing
    assert content.metrics["loss"]
    assert selfsight.write_report(cut).stat().st_size > 1e6


@pytest.mark.parametrize("method", ["mae", "simmim", "convmae", "qb_heat", "localmim", "deepmim", "mp3"])
def test_a_masked_method_shows_reconstructions(method, tmp_path):
    more = ["--target", "pixels"] if method == "localmim" else []
    shorter = ["--data", "world:16", "--batch-size", "8", "--epochs", "1"]
    content = gather_content(pretrain(method, tmp_path / method, "--no-report", *shorter, *more))
    assert content.reconstructs
    assert content.reconstructions, content.missing
    assert content.reconstructions.width == 2 * 3 * (64 + 2) - 2 * 2 + 10
    assert ("What was hidden is outlined." in content.reconstructions.caption) == (method != "mp3")


def test_histograms_of_gradients_make_no_picture_and_the_page_says_so(tmp_path):
    shorter = ["--data", "world:16", "--batch-size", "8", "--epochs", "1"]
    content = gather_content(pretrain("localmim", tmp_path / "localmim", "--no-report", *shorter))
    assert not content.reconstructions
    reason = "Could not be drawn: histograms of gradients make no picture; train with --target pixels"
    assert content.missing["reconstructions"] == reason
    assert any(reason in str(section) for section in all_sections(content))


def test_the_documentation_s_pictures(finished, tmp_path):
    spec = importlib.util.spec_from_file_location("pictures", Path(__file__).parents[2] / "docs" / "pictures.py")
    assert spec
    assert spec.loader
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(finished, tmp_path)
    for name in ("map", "neighbours", "views"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(set(picture.convert("RGB").resize((50, 50)).get_flattened_data())) > 50
