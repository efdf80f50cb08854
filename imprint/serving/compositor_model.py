"""`imprint-compositor` as MLflow runs it: object, background and mask in, picture out, one row per composite.

MLflow executes this file when the model is logged and when it is loaded, so torch is imported by `load_context` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class CompositorModel(PythonModel):
    def load_context(self, context: Any) -> None:
        from imprint.inference.loading import load_compositor
        from imprint.inference.registered import require_registered

        require_registered(Path(context.artifacts["model"]), "imprint-compositor")
        self._compositor = load_compositor(context.artifacts["model"])
        self._params_path = Path(context.artifacts["params"])  # how an object without transparency is segmented

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A data frame of PNGs in `image`, of each background's size and equal to it outside the mask."""
        from imprint.core.pixels import encode_image

        settings = dict(params or {})
        shared = {
            "level": settings.pop("mask_level", "box"),
            "mode": settings.pop("mode", "") or None,
            "shadow_reach": float(settings.pop("shadow_reach", 0.0)),
        }
        requests = self._build_requests(model_input, int(settings.pop("seed", 0)), shared)
        strength = settings.pop("strength", -1.0)
        chosen = {name: value for name, value in settings.items() if value}  # 0: the model's own
        chosen |= {"strength": strength} if strength >= 0 else {}
        made = self._compositor.composite_batch(requests, **chosen)
        return pd.DataFrame({"image": [encode_image(one.picture) for one in made]})

    def _build_requests(self, rows: Any, seed: int, shared: dict[str, Any]) -> list[Any]:
        from imprint.inference.inputs import Request, check_hole, check_object, cut_out
        from imprint.serving.pictures import read_masks, read_pictures

        columns = {name: read_pictures(rows[name], name) for name in ("object", "background")}
        columns["mask"] = read_masks(rows["mask"], "mask")
        requests = []
        for row, (thing, background, hole) in enumerate(zip(*columns.values(), strict=True)):
            check_hole(hole, background.shape[:2], f"mask[{row}]")
            check_object(thing, f"object[{row}]")
            rgba = cut_out(thing, self._params_path, f"object[{row}]")
            request = Request(object_rgba=rgba, background=background[..., :3], hole=hole, seed=seed + row, **shared)
            requests.append(request)
        return requests


set_model(CompositorModel())
