"""`python -m repro COMMAND`; on several ranks, `mpiexec -n R python -m repro train ...`."""

import signal
import sys

try:
    from repro.cli.commands import main
except KeyboardInterrupt:  # while Python still loads what the commands need
    print("stopped before anything was started", file=sys.stderr)
    sys.exit(130)


def run() -> int:
    """The command; after it, requests to stop are ignored, since nothing can be asked of a process while Python ends."""
    try:
        return main()
    finally:
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(run())
