"""The plan: what the small test bed is asked, by which statistics and with how many runs, written down before the runs.

`results/plan.lock.json` has a digest of each part: the questions with their sides, the recipes of the sides, the statistics,
the rules by which the free numbers were chosen, and n. `make verify` compares it with the code and lists every deviation
with its reason.

    python -m repro.paper.plan            what deviates from the plan
    python -m repro.paper.plan "REASON"   writes the plan down, or, if there is one, the reason of what deviates from it now
"""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from repro.paper.profiles import FULL
from repro.paper.questions import QUESTIONS
from repro.paths import RESULTS, ROOT, replacing
from repro.recipes import RECIPES
from repro.run import identity

LOCK = RESULTS / "plan.lock.json"
GONE = "nothing"  # what a part is that is not there


def parts() -> dict[str, str]:
    """The plan that the code has: the digest, or the number, of each part by its name."""
    found = {f"question: {each.claim}": _digest(each) for each in QUESTIONS}
    recipes = sorted({side.recipe for each in QUESTIONS for side in (each.better, each.other)})
    numbers = {
        name: {key: value for key, value in asdict(RECIPES[name]).items() if key not in identity.TEXTS} for name in recipes
    }
    found |= {f"recipe: {name}": _digest(numbers[name]) for name in recipes}
    for what, file in (("statistics", "repro/paper/statistics.py"), ("choice", "bench/regime.py")):
        found |= {f"{what}: {name}": digest[:12] for name, digest in identity.definitions(ROOT / file).items()}
    return found | {f"seeds: {topic}": str(n) for topic, n in FULL.items()}


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def deviations(lock: Path = LOCK) -> dict[str, str]:
    """Each part in which the code is not the plan, with the reason that was given for what it is now; "" if none was.

    A part that is gone again, or back to what was planned, deviates no longer. Without a plan nothing deviates.
    """
    if not lock.exists():
        return {}
    text = json.loads(lock.read_text())
    plan, now = text["plan"], parts()
    given = {(each["part"], each["is"]): each["reason"] for each in text["deviations"]}
    names = [name for name in {**plan, **now} if plan.get(name, GONE) != now.get(name, GONE)]
    return {name: given.get((name, now.get(name, GONE)), "") for name in names}


def write(reason: str, lock: Path = LOCK) -> None:
    """Writes the plan down, with the reason for it; if there is one, adds the reason to all that deviates without one."""
    if lock.exists():
        text, now = json.loads(lock.read_text()), parts()
        new = [name for name, given in deviations(lock).items() if not given]
        text["deviations"] += [
            {"when": identity.now(), "part": name, "is": now.get(name, GONE), "reason": reason} for name in new
        ]
    else:
        text = {"locked": identity.now(), "why": reason, "plan": parts(), "deviations": []}
    with replacing(lock) as temporary:
        temporary.write_text(json.dumps(text, indent=1) + "\n")


def told(lock: Path = LOCK) -> list[str]:
    """Lines that say whether the code is the plan."""
    if not lock.exists():
        return []
    found, text = deviations(lock), json.loads(lock.read_text())
    first = f"plan of {text['locked'][:10]} ({text['why']}): {len(text['plan'])} parts, {len(found)} of them changed since"
    return [first, *(f"     {name}: {reason or 'changed WITHOUT A REASON'}" for name, reason in found.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reason", nargs="?", default="", help="why the plan is as it is, or is not kept")
    if reason := parser.parse_args().reason:
        write(reason)
    print("\n".join(told()) or "no plan is written down: say why it is as it is")


if __name__ == "__main__":
    main()
