"""The session: a rembg session with raw scores. This module alone imports rembg.

rembg's own sessions stretch every answer to its minimum and maximum, so that a picture without an object cannot be told
from one with (and a flat answer becomes NaN); this one gives the network's probabilities, in batches.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imprint.core.errors import InputError
from imprint.core.params import SegmentObjects
from imprint.segmentation.networks import (
    REMEDY,
    SHIPPED_NAME,
    SHIPPED_PATH,
    Network,
    explain_guess,
    find_network,
    is_path,
)

# Importing rembg compiles numba code for over a minute; only its alpha matting, not used here, needs it compiled.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

import onnxruntime as ort
import rembg
from rembg.sessions import sessions as rembg_sessions
from rembg.sessions.base import BaseSession

MIN_SPREAD = 1e-4  # by how much the answers to nothing, noise and an object differ at some place, at least


class NetworkSession(BaseSession):
    """One ONNX file as rembg sees it: `predict` is rembg's protocol, `compute_scores` gives the raw probabilities."""

    def __init__(self, path: Path, network: Network, options: ort.SessionOptions, *, is_known: bool = True) -> None:
        super().__init__(path.stem, options, model_path=path)  # chooses onnxruntime's provider and loads the file
        self.size_hw, self.fixed_batch = _read_input_shape(self.inner_session, network)
        self.network = network
        known = network.logits if is_known else None
        self.logits = _try_out(self, path, network) if known is None else known

    @classmethod
    def download_models(cls, *_: Any, **kwargs: Any) -> str:
        """rembg asks here for the file; ours is there already."""
        return str(kwargs["model_path"])

    @classmethod
    def name(cls, *_: Any, **__: Any) -> str:
        """rembg's name for this kind of session."""
        return "imprint"

    def predict(self, img: Image.Image, *_: Any, **__: Any) -> list[Image.Image]:
        """One picture => one mask, grey 0-255 = probability 0-1, at the picture's size."""
        scores = self.compute_scores([np.asarray(img.convert("RGB"))])[0]
        return [Image.fromarray(np.rint(scores * 255).astype(np.uint8))]

    def compute_scores(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """RGB uint8 [h, w, 3] of any sizes => float32 [h, w] foreground probabilities; one call of the network."""
        raw = self.run_network(images)
        probabilities = 0.5 + 0.5 * np.tanh(0.5 * raw) if self.logits else raw  # the sigmoid, without overflow
        return [_resize_scores(p, i.shape[:2]) for p, i in zip(probabilities, images, strict=True)]

    def run_network(self, images: list[np.ndarray]) -> np.ndarray:
        """The network's first output, float32 [b, h, w], as it is."""
        feed = self.inner_session.get_inputs()[0]
        pixels = np.concatenate([self._normalize(image)[feed.name] for image in images])
        dtype = np.float16 if feed.type == "tensor(float16)" else np.float32
        output = np.asarray(self.inner_session.run(None, {feed.name: pixels.astype(dtype)})[0], np.float32)
        return output[:, 0] if output.ndim == 4 else output

    def _normalize(self, image: np.ndarray) -> dict[str, np.ndarray]:
        size_wh = (self.size_hw[1], self.size_hw[0])
        return self.normalize(Image.fromarray(image), self.network.mean, self.network.std, size_wh)


@dataclass(frozen=True)
class ObjectSession:
    """Foreground segmentation with one network; made by `build_session`."""

    rembg_session: NetworkSession
    batch_size: int
    threshold: float

    def predict(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """RGB uint8 [h, w, 3] of any sizes => float32 [h, w] raw foreground probabilities in [0, 1], at their sizes."""
        size = self.rembg_session.fixed_batch or self.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return [scores for batch in batches for scores in self.rembg_session.compute_scores(batch)]


def open_session(params: SegmentObjects, *, threads: int) -> ObjectSession:
    """See `imprint.segmentation.build_session`."""
    path = Path(params.model).absolute() if is_path(params.model) else None  # a change of folder is another file
    network = find_network(params.model, allow_noncommercial=params.allow_noncommercial)
    session = _open_network(params.model, path, network, threads, os.getpid())
    return ObjectSession(session, params.batch_size, params.threshold)


def remove_background(image: np.ndarray, session: ObjectSession) -> np.ndarray:
    """See `imprint.segmentation.segment_image`."""
    opacity = rembg.remove(image, session=session.rembg_session, only_mask=True)
    return np.asarray(opacity) >= session.threshold * 255


def build_options(threads: int) -> ort.SessionOptions:
    """For onnxruntime: `threads` of its own, beside other processes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
    return options


@functools.cache  # one per process; a forked child must not use its parent's, hence the process in the key
def _open_network(model: str, path: Path | None, network: Network, threads: int, _process: int) -> NetworkSession:
    is_known = path is None
    if path is None:
        path = SHIPPED_PATH if model == SHIPPED_NAME else _fetch_weights(model)
    try:
        session = NetworkSession(path, network, build_options(threads), is_known=is_known)
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = _first_line(error)
        raise InputError(f"segment_objects.model: {path} is no usable ONNX file ({reason}); {REMEDY}") from error
    if not is_known and parent_process() is None and (guess := explain_guess(path, network)):
        print(guess, file=sys.stderr, flush=True)
    return session


def _fetch_weights(model: str) -> Path:
    """The file of a named rembg model, downloaded by rembg on first use."""
    kind = rembg_sessions[model]
    try:
        return Path(kind.download_models())
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"segment_objects.model: the weights of {model} are missing and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}); put {model}.onnx into {kind.model_dir()}, or {REMEDY}"
        ) from error


def _read_input_shape(session: ort.InferenceSession, network: Network) -> tuple[tuple[int, int], int | None]:
    """Picture size and, where the file fixes it, batch size."""
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise InputError(f"segment_objects.model: a network for {shape}, not [batch, 3, height, width]; {REMEDY}")
    batch, height, width = (size if isinstance(size, int) and size > 0 else None for size in (shape[0], *shape[2:]))
    if batch not in (None, 1):
        raise InputError(f"segment_objects.model: a network for {batch} pictures at once, not 1 or any; {REMEDY}")
    return (height or network.size_px, width or network.size_px), batch


def _try_out(session: NetworkSession, path: Path, network: Network) -> bool:
    """Whether a file's answers are logits: they are if they leave [0, 1], unless its settings say. `InputError` for a
    file that has nothing to say."""
    answers = np.concatenate([session.run_network([image]) for image in _draw_tries(*session.size_hw)])
    if not np.isfinite(answers).all() or np.ptp(answers, axis=0).max() < MIN_SPREAD:
        raise InputError(
            f"segment_objects.model: {path} answers the same whatever it is shown (as some converted files do); "
            f"export it again, or {REMEDY}"
        )
    leaves = bool(answers.min() < -1e-3 or answers.max() > 1 + 1e-3)
    return leaves if network.logits is None else network.logits


def _draw_tries(height: int, width: int) -> list[np.ndarray]:
    """Nothing, noise, and an object: a disc, bright on dark with a texture of its own."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ground = np.linspace(40, 90, height)[:, None, None] * np.ones((1, width, 3))
    disc = np.hypot(*np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])[..., None] < 0.5
    stripes = 170 + 60 * np.sin(np.arange(width) * 20 / width)[None, :, None] * np.array([1.0, 0.6, -0.8])
    return [np.zeros_like(noise), noise, np.where(disc, stripes, ground).astype(np.uint8)]


def _resize_scores(scores: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    smaller = size_hw[0] < scores.shape[0]
    mode = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.clip(cv2.resize(scores, (size_hw[1], size_hw[0]), interpolation=mode), 0.0, 1.0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
