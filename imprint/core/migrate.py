"""`imprint migrate`: a parameter file of an earlier version, with the keys that have been added since.

Each new key gets the value by which everything stays as it was; comments and order are kept.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic
from imprint.core.view_changes import VIEW_CHANGES

ADDED: dict[str, Any] = {
    "pretrain_encoder.options.appearance_flow": False,
    "train_compositor.learning_rate.appearance_flow": 0.0,
    "train_compositor.exposure_jitter": 0.0,
    "train_compositor.scene_metering": 0.0,
    "train_compositor.hide_rate": 1.0,
    "evaluate.strength": None,
    "evaluate.view_changes": list(VIEW_CHANGES),
    "evaluate.views_per_case": 2,
    "evaluate.from_noise_cases": 0,
}


def migrate_params(path: Path) -> dict[str, Any]:
    """Write the missing keys into the file; returns them with their values. `InputError` for a file that is no params
    file; one that misses nothing is left as it is."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    try:
        values = yaml.load(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run from the project's root folder") from None
    except YAMLError as error:
        raise InputError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    added = {key: value for key, value in ADDED.items() if _add(values, key, value)}
    if added:
        text = io.StringIO()
        yaml.dump(values, text)
        write_bytes_atomic(path, text.getvalue().encode())
    return added


def _add(values: Any, key: str, value: Any) -> bool:
    """Whether the key was missing in a section that is there, and now is not."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.get(section) if isinstance(values, dict) else None
    if not isinstance(values, dict) or name in values:
        return False
    values[name] = value
    return True
