"""Benchmarks of `make bench`: the training step against PyTorch's own data parallelism and against the machine.

Every variant runs in its own processes, a few steps at a time and all alternately, for several rounds; a number is the ratio
of two medians of one run. Writes results/bench/bench.json. To measure one variant, or to profile a step:

    mpiexec -n 2 python -m bench.step ours
    python -m bench.step profile
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import photographs, two_nodes
from bench.report import SECOND, Goal, publish, row, save
from repro import ReproError, choose, cores, train
from repro.images.data import Images, Stream, load_ahead, requests
from repro.jupyter import engines
from repro.model import Network, find_precision
from repro.optim import SGD
from repro.overlap import average_for
from repro.ranks import comm
from repro.ranks.memory import keep_freed
from repro.replica import Replica
from repro.resnet import build
from repro.scaling.probe import steady
from repro.schedule import at

ROUNDS = 5
SIDE = 2048  # of the matrices whose product shows what the machine can do
PROFILED = 3  # steps
RATE, WEIGHT_DECAY = 0.0, 5e-5  # the images are always the same: at rate 0 the weights stay finite, and the work is the same


@dataclass(frozen=True)
class Variant:
    """One way to train: a few steps on `ranks` ranks with one thread each."""

    kind: str = "ours"  # ours; alone: the same processes without communication; ddp: PyTorch's
    ranks: int = 2
    model: str = "resnet50"
    size: int = 224  # pixels per side
    images: int = 32  # per worker
    workers: int = 1  # per rank
    steps: int = 2  # measured, after one warm-up step
    reduction: str = "exact"
    precision: str = "auto"
    channels_last: bool = True  # for ddp; always true for ours
    keep: bool = True  # keep freed memory
    data: str = ""  # a packed data set, decoded ahead of the step; "": images in memory
    megabits: int = 0  # per second, over TCP between two network namespaces, one rank in each; 0: both here


STEP = {
    "ours": Variant(),
    "ours, fast": Variant(reduction="fast"),
    "ours, with the loader": Variant(data="photographs"),
    "ours, 1 rank": Variant(ranks=1),
    "ours, not averaged": Variant(kind="alone"),
    "DDP as torchvision trains": Variant(kind="ddp", precision="fp32", channels_last=False, keep=False, steps=1),
    "DDP, bf16 and channels_last": Variant(kind="ddp", keep=False),
    "DDP, bf16, channels_last and memory kept": Variant(kind="ddp"),
}
FOR_DIGITS = Variant(model="resnet11", size=8, images=32, precision="fp32", steps=300)
DIGITS = {"digits": FOR_DIGITS, "digits, DDP": replace(FOR_DIGITS, kind="ddp", keep=False, channels_last=False)}
MEMORY = {f"{workers} workers": Variant(ranks=1, size=64, images=4, workers=workers, steps=0) for workers in (1, 448)}
WIRE = {f"{reduction} by TCP": Variant(reduction=reduction, megabits=500) for reduction in ("exact", "fast")}
WIRE["DDP by TCP"] = Variant(kind="ddp", megabits=500)
VARIANTS = MEMORY | DIGITS | STEP | WIRE


# --- One variant, on the ranks that run this -----------------------------------------------------------------------------


def measure(variant: Variant) -> dict:
    """Median seconds per step, peak memory in MB, and FLOP/s of a large matrix product."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if variant.keep:
        keep_freed()
    everyone = comm.world()
    step = (_ddp if variant.kind == "ddp" else _ours)(variant, everyone)
    seconds = []
    for _ in range(variant.steps + 1):
        everyone.gather(None)
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {
        "seconds": median(seconds[1:] or seconds),
        "peak": max(everyone.gather(peak)),
        "product": _product(everyone, variant),
    }


def _precision(variant: Variant) -> str:
    return find_precision(variant.precision, "cpu", small=False)


def _ours(variant: Variant, everyone):
    world = comm.World() if variant.kind == "alone" else everyone
    classes, channels = (10, 1) if variant.model == "resnet11" else (1000, 3)
    network = Network(build(variant.model, classes, channels))
    workers = variant.workers * world.size
    recipe = steady(workers, variant.images, RATE)
    average = average_for(variant.reduction, world, workers, network)
    replica = Replica(world, network, SGD(network, recipe), average, _precision(variant))
    if variant.data:
        stream = Stream(Images(variant.data, "train"), 0, variant.images)
        steps = (at(recipe, number) for number in range(recipe.iterations))
        batches: Iterator = load_ahead(stream, requests(steps, 1, world.rank, world.size), threads=2)
    else:
        batches = repeat(_batch(variant, channels))

    def step():
        mean = train.step(replica, batches, at(recipe, 0))
        return float(mean.loss), float(mean.correct)

    return step


def _ddp(variant: Variant, world):
    """As in torchvision's reference training: cross-entropy, SGD with momentum, DistributedDataParallel (here over gloo)."""
    from torch import distributed
    from torchvision.models import resnet50

    host = f"{two_nodes.NETWORK}.1" if variant.megabits else "127.0.0.1"
    with socket.create_server(("", 0)) as free:  # this port is still free a moment later
        port = world.broadcast(free.getsockname()[1])
    distributed.init_process_group("gloo", init_method=f"tcp://{host}:{port}", rank=world.rank, world_size=world.size)
    small = variant.model == "resnet11"
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = (build("resnet11", 10, 1) if small else resnet50()).to(memory_format=layout).train()
    model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)
    images, labels = _batch(variant, 1 if small else 3)
    images = images.contiguous(memory_format=layout)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=_precision(variant) == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _batch(variant: Variant, channels: int):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(variant.images, channels, variant.size, variant.size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(variant.images) % 10


def _product(everyone, variant: Variant) -> float:
    """FLOP/s of matrix products on all ranks together, in the variant's precision."""
    kind = torch.bfloat16 if _precision(variant) == "bf16" else torch.float32
    left, right = torch.randn(SIDE, SIDE).to(kind), torch.randn(SIDE, SIDE).to(kind)
    seconds = []
    for _ in range(6):
        everyone.gather(None)
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return sum(everyone.gather(2 * SIDE**3 / median(seconds[1:])))


# --- Profile of a step --------------------------------------------------------------------------------------------------------


PRODUCTS = "conv", "addmm", "mm", "bmm"  # how names of operations begin that multiply matrices


def profile() -> list[dict]:
    """`profiled`, of a step of ResNet-50 on one rank alone."""
    torch.set_num_threads(1)
    keep_freed()
    return profiled(_ours(VARIANTS["ours, 1 rank"], comm.World()), PROFILED)


def profiled(step: Callable[[], object], steps: int) -> list[dict]:
    """Milliseconds and share of each operation in a step, from torch's profiler; largest first."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    for _ in range(2):  # in the first the profiler allocates its own memory
        step()
        with torch.profiler.profile(activities=kinds) as profiler:
            for _ in range(steps):
                step()
    rows = [
        {
            "operation": event.key.removeprefix("aten::"),
            "ms": event.self_cpu_time_total / 1000 / steps,
            "calls": event.count / steps,
        }
        for event in profiler.key_averages()
    ]
    total = sum(row["ms"] for row in rows)
    return sorted((row | {"share": row["ms"] / total} for row in rows), key=lambda row: -row["ms"])


def shares(rows: list[dict]) -> dict[str, float]:
    """The share of convolutions and matrix products, of batch norm, and of all other operations in a step."""
    kinds = {"convolutions and products": 0.0, "batch norm": 0.0, "other operations": 0.0}
    for operation in rows:
        name = operation["operation"].lower().removeprefix("mkldnn_")
        norm = "batchnorm" in name.replace("_", "")
        kind = "batch norm" if norm else "convolutions and products" if name.startswith(PRODUCTS) else "other operations"
        kinds[kind] += operation["share"]
    return kinds


# --- All variants alternately -----------------------------------------------------------------------------------------------


def run(name: str, data: Path) -> dict:
    """Runs a variant in its own processes and returns its measurements."""
    variant = VARIANTS[name]
    here, environment = [sys.executable, "-m", "bench.step", name, str(data)], dict(os.environ)
    with ExitStack() as stack:
        command = [engines.find_mpiexec(), "-n", str(variant.ranks), *here]
        if variant.megabits:
            first, second = stack.enter_context(two_nodes.connected(variant.megabits))
            command = [engines.find_mpiexec(), "-n", "1", *first, *here, ":", "-n", "1", *second, *here]
            environment |= two_nodes.MPICH_BY_TCP | {"GLOO_SOCKET_IFNAME": two_nodes.DEVICE}
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    if done.returncode:
        raise ReproError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def rounds(names, data: Path) -> dict[str, list[dict]]:
    """The measurements of each variant in every round; those over a wire only if this machine supports it."""
    measured = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in list(measured):
            if number and name in MEMORY:  # memory does not vary between rounds
                continue
            print(f"round {number + 1} of {ROUNDS}: {name}", flush=True)
            try:
                measured[name].append(run(name, data))
            except two_nodes.NoNamespaces as error:
                print(f"not measured: {error}")
                del measured[name]
    return measured


def operations(size: int = 224) -> int:
    """Floating-point operations to train ResNet-50 on one image: convolutions and the classifier, forward and backward.

    A test counts those of a smaller one.
    """
    network = build("resnet50", 1000)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() // 2


def rows_of(measured: dict[str, list[dict]]) -> list[dict]:
    """The rows of the report: each number beside its peer, from the same rounds."""

    def seconds(name):
        return [entry["seconds"] for entry in measured[name]]

    def images(name):
        variant = VARIANTS[name]
        return [variant.ranks * variant.workers * variant.images / duration for duration in seconds(name)]

    def peak(name):
        return [entry["peak"] for entry in measured[name]]

    against = {
        "DDP as torchvision trains": Goal(">=", 4.0),
        "DDP, bf16 and channels_last": Goal(">=", 1.3),
        "DDP, bf16, channels_last and memory kept": Goal(">=", 1.05),
    }
    unit = "images/s, ResNet-50 at 224 px, 2 ranks x 1 thread x 32 images"
    rows = [row("training", images("ours"), images(peer), f"{peer} (gloo)", unit, goal) for peer, goal in against.items()]
    loaded, work = "ours, with the loader", operations()
    flops = [rate * work / 1e9 for rate in images(loaded)], [entry["product"] / 1e9 for entry in measured[loaded]]
    product = (
        f"matrix product of {SIDE} x {SIDE} on both ranks, same precision",
        f"GFLOP/s, at {work / 1e9:.1f} GFLOP per image",
    )
    twice = [2 * rate for rate in images("ours, 1 rank")], "twice one rank alone"
    apart = seconds("ours, not averaged"), "two processes that do not communicate"
    few = peak("1 workers"), "1 worker", "MB, ResNet-50 at 64 px, 4 images per worker"
    digits, ddp = ([1 / duration for duration in seconds(name)] for name in DIGITS)
    rows += [
        row("training, data and averaging included", *flops, *product, Goal(">=", 0.75)),
        row("weak scaling, 1 to 2 ranks", images("ours"), *twice, unit, Goal(">=", 0.96)),
        row("step with its average", seconds("ours"), *apart, "s", Goal("<=", 1.015)),
        row("exact average", seconds("ours"), seconds("ours, fast"), "fast average", "s per step", Goal("<=", 1.03)),
        row("step with the loader", seconds(loaded), seconds("ours"), "images at hand", "s", Goal("<=", 1.03)),
        *(
            row("peak memory of a rank", peak("ours"), peak(peer), peer, "MB", Goal("<=", 1.0))
            for peer in ("DDP, bf16 and channels_last", "DDP, bf16, channels_last and memory kept")
        ),
        row("peak memory of a rank with 448 workers", peak("448 workers"), *few, Goal("<=", 1.05)),
        row("digits network", digits, ddp, "DDP (gloo), fp32", "steps/s, 2 ranks x 32 images", Goal(">=", 1.5)),
    ]
    if measured.keys() >= WIRE.keys():
        wire, peer = "step between two nodes, TCP at 0.5 Gbit/s", "DDP, bf16, channels_last and memory kept"
        for reduction in ("exact", "fast"):
            rows.append(row(f"{wire}, {reduction}", seconds(f"{reduction} by TCP"), seconds("DDP by TCP"), peer, "s"))
    return rows


def starting() -> list[dict]:
    """Seconds for `import repro`, and until two engines are ready: there is no peer, the goal is in seconds."""
    code = "import time; start = time.perf_counter(); import repro; print(time.perf_counter() - start)"
    imports = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(ROUNDS)
    ]
    ready = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with engines.start(2):
            ready.append(time.perf_counter() - start)
    second = [1.0] * ROUNDS
    return [
        row("import repro", imports, second, SECOND, "s", Goal("<=", 0.15)),
        row("2 engines ready", ready, second, SECOND, "s", Goal("<=", 5)),
    ]


def main() -> None:
    if sys.argv[1:] == ["profile"]:
        rows = profile()
        for entry in rows[:12]:
            print(f"{entry['operation']:45} {entry['ms']:8.1f} ms {100 * entry['share']:5.1f}% {entry['calls']:6.0f} calls")
        save("profile", rows, {"command": "python -m bench.step profile", "variant": asdict(VARIANTS["ours, 1 rank"])})
        return
    if len(sys.argv) > 1:
        name, data = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
        variant = VARIANTS[choose("variant", name, VARIANTS)]
        result = measure(replace(variant, data=data if variant.data else ""))
        if comm.world().rank == 0:
            print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "photographs"
        photographs.pack(photographs.write(Path(folder) / "jpegs"), packed, short_side=256, threads=cores())
        measured = rounds(VARIANTS, packed)
    variants = {name: asdict(each) for name, each in VARIANTS.items()}
    facts = {"command": "make bench", "rounds": ROUNDS, "variants": variants, "measured": measured}
    publish("bench", rows_of(measured) + starting(), facts)


if __name__ == "__main__":
    main()
