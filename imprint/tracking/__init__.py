"""Tracking of a stage's run: a journal in the work folder always, MLflow beside it where it works."""

from imprint.tracking.run import Tracker, send_unsent, start_run

__all__ = ["Tracker", "send_unsent", "start_run"]
