"""`python guard.py COMMAND...`: runs a command and ends its whole process group when the parent is gone.

The parent holds the other end of our standard input. When it ends, however it ends (even by SIGKILL, even on another
thread), we read the end of file, interrupt the group and, if that does not help, kill it. Standard library only.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 20.0


def main(command: list[str]) -> int:
    """The command's exit code."""
    # a shell's `&` starts us with SIGINT ignored; a command that inherits that could not save and end
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the command, which is in our group
    threading.Thread(target=_watch_parent, args=(child,), daemon=True).start()
    return child.wait()


def _watch_parent(child: subprocess.Popen) -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # ends us too


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
