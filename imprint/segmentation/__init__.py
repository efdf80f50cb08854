"""Foreground segmentation with rembg, through a session of ours; objects that touch, told apart; SAM 2 for videos.

Importing this package loads neither rembg and onnxruntime (`build_session` does) nor torch and transformers
(`build_follower` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from imprint.core.params import Sam2, SegmentObjects
    from imprint.segmentation.following import ObjectFollower
    from imprint.segmentation.separator import ObjectSeparator
    from imprint.segmentation.session import ObjectSession


def build_session(params: SegmentObjects, *, threads: int = 1) -> ObjectSession:
    """The process's session for `params.model`; asked again, the same one.

    threads: of onnxruntime, for one picture; leave 1 where several processes share the cores. `InputError` in one line
    for a model that is unknown, refused, missing or cannot be downloaded.
    """
    from imprint.segmentation.session import open_session

    return open_session(params, threads=threads)


def build_separator(params: SegmentObjects, *, threads: int = 1) -> ObjectSeparator | None:
    """What tells objects apart that are one mask of `params.model`; none for other models than the shipped one."""
    from imprint.segmentation.networks import SHIPPED_NAME
    from imprint.segmentation.separator import open_separator

    return open_separator(params.batch_size, threads=threads) if params.model == SHIPPED_NAME else None


def segment_image(image: np.ndarray, session: ObjectSession) -> np.ndarray:
    """RGB uint8 [h, w, 3] => bool [h, w], true where `rembg.remove` sees foreground; all false if it sees none."""
    from imprint.segmentation.session import remove_background

    return remove_background(image, session)


def build_follower(params: Sam2, *, threads: int = 1) -> ObjectFollower:
    """The process's model for `params`; asked again, the same one. On a GPU where torch sees one.

    threads: of torch; leave 1 where several processes share the cores. `InputError` in one line for weights that are
    not named, cannot be had, are pickled, or are not SAM 2's for video.
    """
    from imprint.segmentation.following import open_follower

    return open_follower(params, threads=threads)
