"""`python restore.py STAGE [--pull]`: brings the outputs of a stage's present inputs here, without running the stage.

`dvc repro` does so too, but only when it would run the stage; this is for what comes before, the chunks of clips. Exit
code 1 if neither DVC's run cache nor, with `--pull`, the remote knows them. A program of its own that works on the
project in its working directory. Imports DVC alone.
"""

import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo


def restore(name: str, *, pull: bool) -> bool:
    """Whether it could. Files that DVC does not know are not overwritten."""
    with Repo() as repo:
        stage = next(stage for stage in repo.index.stages if getattr(stage, "name", None) == name)
        try:
            with repo.lock:
                repo.stage_cache.restore(stage, pull=pull)
        except DvcException:
            return False
    return True


if __name__ == "__main__":
    sys.exit(0 if restore(sys.argv[1], pull="--pull" in sys.argv) else 1)
