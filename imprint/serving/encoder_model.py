"""`imprint-encoder` as MLflow runs it: an object in, its identity-preserving tokens out, one row per object.

MLflow executes this file when the model is logged and when it is loaded, so torch is imported by `load_context` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class EncoderModel(PythonModel):
    def load_context(self, context: Any) -> None:
        from imprint.inference.registered import require_registered
        from imprint.models import load_encoder

        require_registered(Path(context.artifacts["model"]), "imprint-encoder")
        self._encoder = load_encoder(Path(context.artifacts["model"]))
        self._params_path = Path(context.artifacts["params"])  # how an object without transparency is segmented

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A data frame with `tokens`: per object a list of token vectors."""
        import numpy as np
        import torch

        from imprint.core.pixels import put_on_black, to_model_range
        from imprint.core.prepare import crop_object

        size_px = self._encoder.preset.reference_px
        objects = [crop_object(rgba[..., :3], rgba[..., 3], size_px) for rgba in self._cut_out(model_input["object"])]
        references = to_model_range(np.stack([put_on_black(rgba) for rgba in objects]))
        with torch.inference_mode():
            tokens = self._encoder.encode_object(torch.from_numpy(references))
        return pd.DataFrame({"tokens": tokens.double().tolist()})

    def _cut_out(self, column: Any) -> list[Any]:
        from imprint.inference.inputs import check_object, cut_out
        from imprint.serving.pictures import read_pictures

        cut_outs = []
        for row, picture in enumerate(read_pictures(column, "object")):
            check_object(picture, f"object[{row}]")
            cut_outs.append(cut_out(picture, self._params_path, f"object[{row}]"))
        return cut_outs


set_model(EncoderModel())
