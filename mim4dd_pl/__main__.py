"""The program: ``mim4dd``, or ``python -m mim4dd_pl``."""

import os
import signal
import sys
import traceback
from typing import NoReturn


def run() -> NoReturn:
    """The console script.

    It finds the user's own classes in the working folder, after all others: no file there hides a library.
    """
    if sys.path[0] in ("", os.getcwd()):  # as `python -m` has it
        del sys.path[0]
    sys.path.append(os.getcwd())
    # The libraries take seconds to import, and cannot answer Ctrl-C meanwhile: it ends the program without a word.
    answer = signal.getsignal(signal.SIGINT)
    if answer is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mim4dd_pl.app.cli import main
    from mim4dd_pl.app.processes import leave

    signal.signal(signal.SIGINT, answer)
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    leave(code)


if __name__ == "__main__":
    run()
