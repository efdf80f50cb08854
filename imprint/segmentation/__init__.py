"""Foreground segmentation with rembg, through a session of ours.

Importing this package loads neither rembg nor onnxruntime; `build_session` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from imprint.core.params import SegmentObjects
    from imprint.segmentation.session import ObjectSession


def build_session(params: SegmentObjects, *, threads: int = 1) -> ObjectSession:
    """The process's session for `params.model`; asked again, the same one.

    threads: of onnxruntime, for one picture; leave 1 where several processes share the cores. `InputError` in one line
    for a model that is unknown, refused, missing or cannot be downloaded.
    """
    from imprint.segmentation.session import open_session

    return open_session(params, threads=threads)


def segment_image(image: np.ndarray, session: ObjectSession) -> np.ndarray:
    """RGB uint8 [h, w, 3] => bool [h, w], true where `rembg.remove` sees foreground; all false if it sees none."""
    from imprint.segmentation.session import remove_background

    return remove_background(image, session)
