"""Benchmarks of `make bench-scaling`: probes on 1 and 2 ranks and over TCP, and how well the model predicts held-back data.

Writes results/bench/scaling.json (probes and checks) and prints the checks as a table. With a file of an earlier call, it
measures nothing, checks the probes in it again and writes the checks into it:

    python -m bench.scaling
    python -m bench.scaling results/reference/bench/scaling.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench import two_nodes
from repro import ReproError
from repro.jupyter.engines import find_mpiexec
from repro.paths import RESULTS, ROOT
from repro.run.identity import code_version, now
from repro.scaling import steptime

PATH = RESULTS / "bench" / "scaling.json"
SUBJECTS = (  # small enough for many rounds; the shares of computation and communication differ widely
    {"model": "resnet18", "size": 64, "images": [4, 12, 32], "precision": "fp32"},
    {"model": "resnet50", "size": 64, "images": [4, 8, 16], "precision": "fp32"},
    {"model": "resnet50", "size": 128, "images": [2, 4, 8], "reduction": "fast", "precision": "bf16"},
)
REAL = {"model": "resnet50", "images": [2, 4, 8], "reduction": "fast", "precision": "bf16"}  # at 224 pixels, with the loader
MEGABITS = 500, 2000  # per second, on the wire between two namespaces
SECONDS, LEAST = 60.0, 8  # per probe, and times per row at least
BUSY = 0.05  # share of the cores that others may use while a probe measures
GOAL = 10.0  # per cent; or twice the noise, where that is more


def probed(parameters: dict, places: list[list[str]]) -> dict:
    """Runs a probe in its own processes, one rank in each of `places` (a command that runs another one; []: this machine)."""
    time.sleep(two_nodes.SETTLE if places[0] else 0)
    flags = ["--seconds", str(SECONDS), "--least", str(LEAST)]
    for name, value in parameters.items():
        flags += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe.json"
        ranks = [["-n", "1", *place, sys.executable, "-m", "repro", "probe", "--out", str(out), *flags] for place in places]
        command = [find_mpiexec(), *ranks[0], *(part for rank in ranks[1:] for part in (":", *rank))]
        environment = os.environ | (two_nodes.MPICH_BY_TCP if places[0] else {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=20 * SECONDS, env=environment)
        if done.returncode:
            raise ReproError(f"a probe failed with status {done.returncode}: {done.stderr.strip()[-800:]}")
        found = json.loads(out.read_text())
        if found["busy"] > BUSY:
            print(f"BUSY: other programs used {found['busy']:.0%} of the cores during this probe: its timings are unreliable")
        shown = " ".join(Path(flag).name if "/" in flag else flag for flag in flags)  # without this machine's folders
        return found | {"command": f"mpiexec -n {len(places)} python -m repro probe {shown}"}


def stand_in(folder: Path) -> str:
    """Packs photographs in ImageNet's layout; returns the folder."""
    packed = folder / "imagenet-subset"
    for command in (
        [str(ROOT / "data_prep" / "stand_in.py"), "--out", str(folder / "archives")],
        [str(ROOT / "data_prep" / "imagenet.py"), "--source", str(folder / "archives"), "--subset", "--out", str(packed)],
    ):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return str(packed)


def checks(two: dict, tcp: dict[int, dict]) -> list[dict]:
    """Checks predictions of steps and of the whole vector's allreduce, which no fit has used, for one network on two ranks.

    `two` is the probe on this machine, `tcp` has those over a wire by its rate. No fit uses a step or the allreduce of a step's
    vector; some checks, as their names say, leave out more.
    """
    subject = {"model": f"{two['model']}, {two['size']} px, {two['reduction']}, {two['precision']}"}
    counts = {row["images"] for row in two["rows"] if row["kind"] == "step"}
    known = _without_vector(two)
    outer = [row for row in known if row.get("images") not in counts - {min(counts), max(counts)}]
    middle = [row for row in two["rows"] if row.get("images") in counts - {min(counts), max(counts)}]
    here = steptime.fit(known)
    rows = steptime.held_back(middle, steptime.fit(outer), "2 ranks, at numbers of images between those fitted")
    rows += steptime.held_back(two["rows"], here, "2 ranks, fitted to both without communication")
    alone = replace(steptime.fit(known, ranks=1), spread=here.spread)
    rows += steptime.held_back(two["rows"], alone, "2 ranks, fitted to 1 rank alone")
    rows += _whole_vector(two, here, "allreduce of the step's vector, from smaller messages")
    rows += _by_tcp(tcp) if tcp else []
    return [subject | row | judged(row, (two, *tcp.values())) for row in rows]


def _by_tcp(tcp: dict[int, dict]) -> list[dict]:
    """The checks of the probes over a wire, by its rate."""
    # Where communication is hidden best, its cost to the cores that compute shows; it is the same on slower wires.
    rows, fastest = [], tcp[max(tcp)]
    cost, fewer = steptime.copying(fastest["rows"], steptime.fit(_without_vector(fastest)), fastest["buckets"])
    for megabits, probe in tcp.items():
        wire = replace(steptime.fit(_without_vector(probe)), copying=cost)
        left = fewer if probe is fastest else probe["rows"]
        where = f"2 ranks by TCP at {megabits} Mbit/s"
        rows += steptime.held_back(left, wire, f"{where}, fitted to both without communication", 2, probe["buckets"])
        rows += _whole_vector(probe, wire, f"allreduce by TCP at {megabits} Mbit/s, from smaller messages")
        for other in set(tcp) - {megabits}:
            link = steptime.fit(_without_vector(tcp[other])).link  # with this wire's share in place of that wire's
            change = two_nodes.FRAME * (8e-6 / megabits - 8e-6 / other)
            beyond = None if link.beyond is None else link.beyond + change
            moved = replace(wire, link=replace(link, byte=link.byte + change, beyond=beyond))
            rows += steptime.held_back(left, moved, f"{where}, link from {other}", 2, probe["buckets"])
            rows += _whole_vector(probe, moved, f"allreduce by TCP at {megabits} Mbit/s, link from {other}")
    return rows


def judged(row: dict, probes) -> dict:
    """Whether an error is small enough: at most 10%, or twice the noise of the probes, where that is more."""
    allowed = max(GOAL, 2 * max(probe["noise"] for probe in probes))
    return {"allowed_percent": allowed, "state": "PASS" if abs(row["error_percent"]) <= allowed else "MISSED"}


def four_ranks(four: dict, two: dict, pair: dict) -> list[dict]:
    """Checks predictions of 4 ranks, two in each of two namespaces: fitted to 4 without communication, and with the links of 2.

    More ranks than cores share the cores: what 4 compute at the same time was measured, and is no part of the check, and what
    their messages cost the cores is shared in the same way. `two` and `pair` are the probes of 2 ranks in shared memory, whose
    link stands for the one within a namespace, and by TCP.
    """
    subject = {"model": f"{four['model']}, {four['size']} px, {four['reduction']}, {four['precision']}"}
    wire, memory = steptime.fit(_without_vector(pair)), steptime.fit(_without_vector(two)).link
    cost, _ = steptime.copying(pair["rows"], wire, pair["buckets"])
    here = replace(steptime.fit(_without_vector(four)), copying=cost * max(1.0, four["ranks"] / four["cores"]))
    rows = steptime.held_back(
        four["rows"], here, "4 ranks by TCP, fitted to 4 without communication", four["ranks"], four["buckets"]
    )
    rows += steptime.held_back(
        four["rows"], replace(here, link=memory), "4 ranks by TCP, with the links of 2", 2, four["buckets"], between=wire.link
    )
    return [subject | row | judged(row, (four, two, pair)) for row in rows]


def _without_vector(probe: dict) -> list[dict]:
    return [row for row in probe["rows"] if row.get("bytes") != row["vector"]]


def _whole_vector(probe: dict, fitted: steptime.Fit, check: str) -> list[dict]:
    row = next(row for row in probe["rows"] if row.get("bytes") == row["vector"])
    predicted = steptime.rabenseifner(fitted.link, row["ranks"], row["bytes"])
    return [
        {
            "check": check,
            "ranks": row["ranks"],
            "images": 0,
            "n": len(row["seconds"][0]),
            "predicted": predicted,
            "measured": steptime.median(row),
            "error_percent": 100 * (predicted / steptime.median(row) - 1),
        }
    ]


def judge(probes: list[dict]) -> list[dict]:
    """All checks of the probes that `measured` returned."""
    rows = []
    for subject in SUBJECTS:
        mine = [probe for probe in probes if all(probe[name] == subject[name] for name in ("model", "size", "precision"))]
        two = next(probe for probe in mine if "wire_megabits" not in probe)
        tcp = {probe["wire_megabits"]: probe for probe in mine if "wire_megabits" in probe and probe["ranks"] == 2}
        four = next((probe for probe in mine if probe["ranks"] == 4 and probe["wire_megabits"] in tcp), None)
        rows += checks(two, tcp)
        if four:
            rows += four_ranks(four, two, tcp[four["wire_megabits"]])
    return rows


def measured() -> tuple[list[dict], list[str]]:
    """The probes, and what could not be measured on this machine."""
    probes, notes = [], []
    for subject in SUBJECTS:
        probes.append(probed(subject, [[], []]))
        layouts = [(megabits, 1) for megabits in MEGABITS] + ([(max(MEGABITS), 2)] if subject is SUBJECTS[0] else [])
        for megabits, per_node in layouts:
            try:
                with two_nodes.connected(megabits) as (first, second):
                    places = [first] * per_node + [second] * per_node
                    probes.append(probed(subject, places) | {"wire_megabits": megabits})
            except ReproError as error:
                notes.append(f"no check on {2 * per_node} ranks by TCP at {megabits} Mbit/s: {error}")
                print(notes[-1])
    with tempfile.TemporaryDirectory() as folder:
        real = REAL | {"data": stand_in(Path(folder))}
        probes += [probed(real, [[]]), probed(real, [[], []])]
    return probes, notes


def main() -> None:
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        if not path.exists():
            raise ReproError(f"there is no {path}: name a file that `make bench-scaling` wrote")
        result = json.loads(path.read_text())
    else:
        path = PATH
        probes, notes = measured()
        result = {"when": now(), "command": "make bench-scaling", "probes": probes, "notes": notes}
        steptime.save(result, path)
    result |= {"checks": judge(result["probes"]), "checks_version": code_version()}
    show(result["checks"])
    for what in ("busy", "noise"):
        print(f"{what} in each probe: {', '.join(format(probe[what], '.3g') for probe in result['probes'])}")
    steptime.save(result, path)
    small = sum(row["state"] == "PASS" for row in result["checks"])
    print(f"{small} of {len(result['checks'])} errors are small enough; written to {path}")


def show(rows: list[dict]) -> None:
    for row in rows:
        print(
            f"{row['model']:32} {row['check']:58} {row['images'] or '':>3} images  predicted {1000 * row['predicted']:8.1f} "
            f"measured {1000 * row['measured']:8.1f} ms  {row['error_percent']:+6.1f}% of {row['allowed_percent']:.0f}%  "
            f"{row['state']}  n = {row['n']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
