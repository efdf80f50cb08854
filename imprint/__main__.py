"""`python -m imprint <command>`."""

from imprint.cli import app

if __name__ == "__main__":
    app()
