"""SAM 2 over the frames of a shot, from one mask per object. This module alone of the package imports torch.

The class is transformers' `Sam2VideoModel`; its own processor needs torchvision, so pictures are prepared here. The
constants are the published ones (`Sam2VideoVideoProcessor`): the size of the weights' configuration (1024 px),
bilinear, ImageNet's mean and deviation, and 0 as the logit from which a pixel belongs to the object.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession, Sam2VideoModel
from transformers.utils import logging

from imprint.core.errors import InputError
from imprint.core.params import Sam2
from imprint.core.sources import Source, check_safetensors, fetch_source, load_strictly, name_sam2
from imprint.segmentation.networks import IMAGENET_MEAN, IMAGENET_STD

MODEL_TYPE = "sam2_video"


@dataclass(frozen=True)
class ObjectFollower:
    """Follows objects through pictures with one model; made by `build_follower`."""

    model: Sam2VideoModel

    @property
    def side_px(self) -> int:
        """Side of the square that pictures are stretched to: 1024 for the published weights."""
        side = self.model.config.image_size
        assert isinstance(side, int), f"a square is meant: {side}"
        return side

    @torch.inference_mode()
    def follow(self, images: Iterable[np.ndarray], masks: Mapping[int, np.ndarray]) -> Iterator[np.ndarray]:
        """Logits float32 [object, s, s] of every picture, in their order, the objects in the order of `masks`.

        images: RGB uint8 [h, w, 3]; `masks`, bool [h, w] each, are those of the first. For the way back in time, hand
        in the pictures from the last to the first. -1024 everywhere: the object is out of sight.
        """
        session = Sam2VideoInferenceSession(inference_device=self.model.device, dtype=self.model.dtype)
        for number, mask in masks.items():
            prepared = prepare_mask(mask, self.side_px)
            session.add_mask_inputs(session.obj_id_to_idx(number), 0, prepared)
        session.obj_with_new_inputs = list(masks)
        for position, image in enumerate(images):
            pixels = prepare_picture(image, self.side_px)
            output = self.model(session, frame_idx=position, frame=pixels)
            _forget(session, position - self.count_remembered())
            yield output.pred_masks[:, 0].float().cpu().numpy()

    def enlarge(self, logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """Logits [object, s, s] => float32 [object, h, w], as published: to the model's size, then to the picture's."""
        large = interpolate(
            torch.from_numpy(logits)[None], (self.side_px, self.side_px), mode="bilinear", align_corners=False
        )
        return interpolate(large, size_hw, mode="bilinear", align_corners=False)[0].numpy()

    def count_remembered(self) -> int:
        """How many pictures back the model still looks, the first one apart, which it never forgets."""
        return max(self.model.config.num_maskmem, self.model.config.max_object_pointers_in_encoder) - 1


def open_follower(params: Sam2, *, threads: int) -> ObjectFollower:
    """See `imprint.segmentation.build_follower`."""
    torch.set_num_threads(threads)
    source = name_sam2(params)
    return ObjectFollower(_load_model(source, fetch_source(source, Path(".")).absolute(), os.getpid()))


@functools.cache  # one per process
def _load_model(source: Source, folder: Path, _process: int) -> Sam2VideoModel:
    check_safetensors(folder)
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except json.JSONDecodeError:
        raise InputError(f"{folder}/config.json is no JSON; download it again") from None
    if found != MODEL_TYPE:
        raise InputError(f"{source.key}: {folder} holds a {found}, not a {MODEL_TYPE}; name weights of SAM 2 for video")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = load_strictly(Sam2VideoModel, folder, dtype=torch.float32)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def prepare_picture(image: np.ndarray, side_px: int) -> Tensor:
    """RGB uint8 [h, w, 3] => float32 [1, 3, side, side], stretched to a square and normalised."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    small = interpolate(pixels, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True).round()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (small / 255.0 - mean) / std


def prepare_mask(mask: np.ndarray, side_px: int) -> Tensor:
    """Bool [h, w] => float32 [1, 1, side, side] of 0 and 1."""
    pixels = torch.tensor(mask, dtype=torch.float32)[None, None]
    if mask.shape == (side_px, side_px):
        return pixels
    size = (side_px, side_px)
    return (interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True) >= 0.5).float()


def _forget(session: Sam2VideoInferenceSession, position: int) -> None:
    """Drop what no later picture looks at: pictures once seen, and what was found in those up to `position`."""
    assert session.processed_frames is not None
    session.processed_frames.clear()
    for outputs in session.output_dict_per_obj.values():
        outputs["non_cond_frame_outputs"].pop(position, None)
        for output in [*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()]:
            output.pop("high_res_masks", None)  # only the memory's encoder, which has run, needed them
