"""`imprint estimate`: both stages counted, set against a card, and said with what each number is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imprint.core.params import Params, Training, load_params
from imprint.estimate.counting import StepCount, build_meta_model, count_pictures, count_step
from imprint.estimate.devices import GIB, Card
from imprint.estimate.state import StateBytes, count_parameters, count_state
from imprint.models import load_card
from imprint.models.checkpoint import load_preset
