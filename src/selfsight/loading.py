"""From a run's folder back to an encoder or a classifier."""

from pathlib import Path
from typing import Any, Literal

import torch

from selfsight.encoders import dalle
from selfsight.encoders.build import build_encoder
from selfsight.engine import checkpoint
from selfsight.engine.run import open_run
from selfsight.errors import UserError
from selfsight.parts.tokenizers import CodeHead, Tokenizer


def load(run: Path | str, which: Literal["last", "best"] = "last") -> Any:
    """The trained encoder of a run, in evaluation mode: an ``nn.Module`` from images to features.

    ``best`` is the checkpoint with the best online probe, where the images have labels.

    ``encoder(x)`` gives ``b width``, ``encoder.dense(x)`` the last map; ``encoder.model`` is the timm model itself.
    Raises ``UserError`` where ``run`` is no run.
    """
    return open_run(run).encoder(which)


def load_classifier(run: Path | str) -> Any:
    """The classifier of a fine-tuned or distilled run, in evaluation mode: a module from images to logits.

    ``open_run(run).classes`` names what they stand for. Raises ``UserError`` where the run is no classifier.
    """
    opened = open_run(run)
    if not opened.classes:
        raise UserError(f"{opened.path} is a run of {opened.method}, no classifier: selfsight finetune {opened.path}")
    return opened.recipe().method.eval()


def load_tokenizer(path: Path | str, *, grid: int, channels: int = 3) -> Tokenizer:
    """A frozen tokenizer: that of a run of ``dvae``, or the state dict of DALL-E's published encoder in a file.

    The published file holds a whole module, which loading it would execute. With the package ``dall_e`` installed,
    ``torch.save(dall_e.load_model("encoder.pkl").state_dict(), "encoder.pt")`` makes a file that this reads.

    Args:
        path: the run's folder, or the file.
        grid: places a side that it is to give codes for.
        channels: of the images.
    """
    path = Path(path)
    return _published(path, grid, channels) if path.is_file() else load_dvae(path, channels=channels).tokenizer()


def load_dvae(run: Path | str, *, channels: int = 3) -> Any:
    """The method of a run of ``dvae``: its ``tokenizer()``, and ``paint``, which makes pictures of codes.

    Raises ``UserError`` where ``run`` is no run of ``dvae``, or one of images with another number of ``channels``.
    """
    opened = open_run(run)
    if opened.method != "dvae":
        raise UserError(f"{run} is a run of {opened.method}, no tokenizer; train one by selfsight pretrain dvae")
    if opened.flags.channels != channels:
        raise UserError(f"the tokenizer {run} takes images of {opened.flags.channels} channels, not {channels}")
    with torch.random.fork_rng(devices=[]):  # building it seeds the generator, which the caller's weights come from
        return opened.recipe().method


def _published(path: Path, grid: int, channels: int) -> Tokenizer:
    try:
        state = checkpoint.read(path)
    except Exception as error:  # zipfile and torch raise a dozen kinds
        raise UserError(
            f"{path} is no state dict that can be read without executing it ({type(error).__name__}); of DALL-E's "
            "encoder.pkl make one by torch.save(dall_e.load_model('encoder.pkl').state_dict(), 'encoder.pt')"
        ) from error
    weights, head = dalle.from_official(state)
    shape = dalle.shape_of(weights)
    size = grid * 2 ** (shape.groups - 1)
    if weights["blocks.input.weight"].shape[1] != channels:
        raise UserError(f"the tokenizer {path} takes images of 3 channels, not {channels}; train one by dvae")
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder("dalle", image_size=size, channels=channels, **shape._asdict())
        to_codes = CodeHead(encoder.width, len(head["bias"]))
    encoder.model.load_state_dict(weights)
    to_codes.load_state_dict(head)
    return Tokenizer(encoder, to_codes)
