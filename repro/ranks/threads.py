"""OpenMP must not bind threads to cores here: launchers bind ranks, and a rank has threads of its own besides OpenMP's.

It would bind the first thread of every rank that it finds on the same cores to the first of them, and the threads that decode
images, which it does not know, inherit that one core. Nothing would say so, it would only be slow.
"""

import os
import sys

BINDING = "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"


def bound() -> list[str]:
    """The variables of the environment that ask OpenMP to bind threads, such as OMP_PROC_BIND=close."""
    off = "", "false", "disabled", "none"
    if os.environ.get("OMP_PROC_BIND", "").lower() == "false":  # which outdoes the others
        return []
    return [f"{name}={os.environ[name]}" for name in BINDING if os.environ.get(name, "").lower() not in off]


def unbind() -> str:
    """Removes these variables, and says which. Too late once torch is loaded, whose OpenMP has read them: says so instead."""
    if not (found := bound()):
        return ""
    named = ", ".join(found)
    if "torch" in sys.modules:
        return f"{named}: OpenMP binds the threads of every rank to the same cores, so training may be slow: unset it"
    for name in BINDING:
        os.environ.pop(name, None)
    return f"{named}: not used, since OpenMP would bind the threads of every rank to the same cores"
