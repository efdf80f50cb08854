"""Tracking of a stage's run: JSONL in the work folder always, MLflow beside it where it works."""

from imprint.tracking.run import Tracker, start_run

__all__ = ["Tracker", "start_run"]
