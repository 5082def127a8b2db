"""`python -m repro COMMAND`; on several ranks, `mpiexec -n R python -m repro train ...`."""

import sys

try:
    from repro.cli.commands import main
except KeyboardInterrupt:  # while Python still loads what the commands need
    print("stopped before anything was started", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
