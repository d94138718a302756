"""The program: ``mim4dd``, or ``python -m mim4dd_pl``."""

import signal
import traceback
from typing import NoReturn


def run() -> NoReturn:
    """The console script."""
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
