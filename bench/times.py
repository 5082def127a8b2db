"""How long a target of make takes here: runs it, and notes its minutes in results/bench/times.json.

    python -m bench.times test

Run nothing else meanwhile. A target that fails is not noted. The file has the newest entry of each target and machine.
"""

import json
import os
import resource
import subprocess
import sys
import time

from repro.paths import REFERENCE, RESULTS, ROOT, replacing, writable_folder
from repro.run.identity import code_version, now, processor

NAME = "bench/times.json"
IDENTITY = "target", "machine", "cores"


def noted(entry: dict, earlier: list[dict]) -> list[dict]:
    """The earlier entries, but for those that this one replaces, and this one."""
    return [old for old in earlier if any(old[key] != entry[key] for key in IDENTITY)] + [entry]


def main(target: str) -> int:
    began = time.monotonic()
    done = subprocess.run(["make", target], cwd=ROOT)
    seconds = time.monotonic() - began
    if done.returncode:
        return done.returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    entry = {"target": target, "machine": processor(), "cores": os.cpu_count(), "when": now(), "version": code_version()}
    entry |= {"seconds": round(seconds), "core_seconds": round(used.ru_utime + used.ru_stime)}
    path = RESULTS / NAME if (RESULTS / NAME).exists() else REFERENCE / NAME
    entries = noted(entry, json.loads(path.read_text()) if path.exists() else [])
    writable_folder((RESULTS / NAME).parent)
    with replacing(RESULTS / NAME) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n")
    print(f"make {target}: {seconds:.0f} s, of which {entry['core_seconds']} core-seconds of work", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
