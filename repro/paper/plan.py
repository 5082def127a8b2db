"""The plan: what the small test bed is asked, by which statistics and with how many runs, written down before the runs.

`results/plan.lock.json` has a digest of each part: the questions with their sides, the recipes of the sides, how they are
made small, the statistics, the rules by which the free numbers were chosen, and n. `make verify` compares it with the code
and lists every deviation with its reason.

    python -m repro.paper.plan            what deviates from the plan
    python -m repro.paper.plan "REASON"   writes the plan down, or, if there is one, the reason of what deviates from it now
"""

import argparse
import hashlib
import json
from dataclasses import MISSING, fields
from pathlib import Path

from repro.paper.answering import Question, Side
from repro.paper.profiles import FULL, PHOTOGRAPHS
from repro.paper.questions import QUESTIONS
from repro.paths import RESULTS, ROOT, replacing
from repro.recipes import RECIPES, SHRINKS, Shrink
from repro.run import identity
from repro.schedule import Recipe, Stage

LOCK = RESULTS / "plan.lock.json"
KINDS = Question, Side, Recipe, Stage, Shrink
GONE = "nothing"  # what a part is that is not there


def parts() -> dict[str, str]:
    """The plan that the code has: the digest, or the number, of each part by its name."""
    found = {f"question: {each.claim}": _digest(each) for each in QUESTIONS}
    recipes = sorted({side.recipe for each in QUESTIONS for side in (each.better, each.other)})
    found |= {f"recipe: {name}": _digest(RECIPES[name]) for name in recipes}
    found |= {f"shrink: {name}": _digest(SHRINKS[name]) for name in ("laptop", "photographs")}
    files = {"statistics": "repro/paper/statistics.py", "choice": "bench/regime.py", "tuning": "repro/paper/choice.py"}
    for what, file in files.items():
        found |= {f"{what}: {name}": digest[:12] for name, digest in identity.definitions(ROOT / file).items()}
    for kind in KINDS:
        found |= {f"default: {kind.__name__}.{name}": str(value) for name, value in _defaults(kind).items()}
    found |= {f"seeds: {topic}": str(n) for topic, n in FULL.items()}
    return found | {f"seeds, photographs: {topic}": str(n) for topic, n in PHOTOGRAPHS.items()}


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(_chosen(value), sort_keys=True).encode()).hexdigest()[:12]


def _chosen(value):
    """A question or a recipe as plain values, without texts and defaults, which are parts of their own."""
    if isinstance(value, KINDS):
        named = isinstance(value, tuple)
        values = value._asdict() if named else {each.name: getattr(value, each.name) for each in fields(value)}
        default = _defaults(type(value))
        chosen = {name: each for name, each in values.items() if name not in default or each != default[name]}
        return {name: _chosen(each) for name, each in chosen.items() if name not in identity.TEXTS}
    return [_chosen(each) for each in value] if isinstance(value, (list, tuple)) else value


def _defaults(kind: type) -> dict:
    """The defaults of a kind's fields, without those of texts."""
    found = getattr(kind, "_field_defaults", None)  # of a named tuple
    if found is None:
        found = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    return {name: value for name, value in found.items() if name not in identity.TEXTS}


def deviations(lock: Path = LOCK) -> dict[str, str]:
    """Each part in which the code is not the plan, with the reason that was given for what it is now; "" if none was.

    A part that is gone again, or back to what was planned, deviates no longer. Without a plan nothing deviates.
    """
    if not lock.exists():
        return {}
    text = json.loads(lock.read_text())
    plan, now = text["plan"], parts()
    given = {part: each["reason"] for each in text["deviations"] for part in each["parts"].items()}
    names = [name for name in {**plan, **now} if plan.get(name, GONE) != now.get(name, GONE)]
    return {name: given.get((name, now.get(name, GONE)), "") for name in names}


def write(reason: str, lock: Path = LOCK) -> None:
    """Writes the plan down, with the reason for it; if there is one, adds the reason to all that deviates without one."""
    if lock.exists():
        text, now = json.loads(lock.read_text()), parts()
        new = {name: now.get(name, GONE) for name, given in deviations(lock).items() if not given}
        text["deviations"] += [{"when": identity.now(), "reason": reason, "parts": new}] if new else []
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
