"""`python -m repro COMMAND`; on several ranks, `mpiexec -n R python -m repro train ...`."""

import sys

from repro.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
