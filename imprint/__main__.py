"""`python -m imprint <command>`."""

import os

from imprint.cli import app

if __name__ == "__main__":
    # torch's threads otherwise spin while they wait: beside any other busy process, training is many times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
