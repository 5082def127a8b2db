"""A model of one training step's time, fitted to measurements and extrapolated with bands. No torch, no MPI.

    step = compute(images per rank) x slowest of all ranks + exposed allreduce + loading

    compute   per_step + workers (per_worker + per_image images): a rank computes its workers one after the other
    slowest   expected maximum of the ranks' times, which differ by a measured spread (`slowest`), or, with backup ranks,
              the time at which as many are done as are waited for
    allreduce Hockney's model: a message of n bytes takes latency + n seconds_per_byte, so the rounds and bytes of an
              algorithm determine its cost (`rabenseifner`); with several buckets a part of it is hidden behind the
              backward pass (`exposed`)
    copying   what is hidden is not free: the cores that compute also copy and add the bytes, unless communication has
              cores of its own. It adds to the step: measured, no more is hidden behind it

The cost of the additions is included in seconds_per_byte: for each byte sent in a reduce-scatter one is added, so
2 (p - 1)/p n beta + (p - 1)/p n gamma = 2 (p - 1)/p n (beta + gamma/2), also for numbers that are not powers of two.

Everything that the model computes has the label MODEL.

Sources: R. Hockney, The communication challenge for MPP, Parallel Computing 20 (1994) 389-398; R. Thakur, R. Rabenseifner and
W. Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005) 49-66.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, nnls
from scipy.special import betaincinv, ndtri

from repro import ReproError, choose
from repro.paths import replacing, writable_folder
from repro.scaling import BETWEEN_NODES

MODEL, MEASURED = "MODEL", "measured"  # the label of each number; nothing that this module computes is `measured`
BACKWARD = 2 / 3  # share of a step's compute that produces gradients: backward takes about two forward passes


# --- Allreduce --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Hockney's two parameters: a message of n bytes takes `latency` + n * `byte` seconds.

    In shared memory the bytes beyond those that a core's cache holds (`CACHE`) take `beyond` seconds each, if it is given.
    That is right for messages of about the size that it was fitted to: measured, the price of a byte varies from 4 to 64 MB.
    """

    latency: float
    byte: float
    beyond: float | None = None

    def seconds(self, rounds: float, sent: float) -> float:
        """Of `rounds` messages with `sent` bytes together."""
        inside = sent if self.beyond is None else min(sent, CACHE)
        return rounds * self.latency + inside * self.byte + (sent - inside) * (self.beyond or 0.0)


CACHE = 1 << 20  # bytes of a core's second-level cache


def rabenseifner(link: Link, ranks: int, size: float) -> float:
    """Seconds to allreduce `size` bytes by recursive halving, then recursive doubling, as MPICH does for long vectors.

    2 log2 p latency + 2 (p - 1)/p n byte. If the number of ranks is not a power of two, the ranks beyond the largest power p
    first send their whole vector to a neighbour and receive the sum at the end: 2 more rounds and 2 n more bytes, about
    twice the bytes.
    """
    rounds, sent = _messages(ranks)
    return link.seconds(rounds, sent * size)


def _messages(ranks: int) -> tuple[int, float]:
    """Rounds of messages, and the bytes that a rank sends in them, as a multiple of the vector's."""
    power = 1 << (ranks.bit_length() - 1)
    rounds, sent = 2 * (power.bit_length() - 1), 2 * (power - 1) / power
    return (rounds + 2, sent + 2) if power < ranks else (rounds, sent)


def allreduce(link: Link, nodes: int, size: float, within: Link, per_node: int) -> float:
    """Seconds to allreduce `size` bytes over `nodes` nodes of `per_node` ranks; zero for one rank.

    Hierarchical, as in MPICH: reduced within each node, then over one rank per node, then distributed within each node. So
    the two halves of Rabenseifner's algorithm within nodes enclose the whole algorithm between nodes.
    """
    return rabenseifner(within, per_node, size) + rabenseifner(link, nodes, size)


def exposed(communication: Callable[[float], float], size: float, buckets: int, backward: float) -> float:
    """Seconds by which the allreduce of `size` bytes outlasts a backward pass of `backward` seconds.

    One bucket is an allreduce after the backward pass. Several buckets have equal size, each is ready as soon as its share of
    the backward pass is done, and they follow one another. With c seconds per bucket, what remains is either the last bucket
    alone (if communication is fast), or the wait for the first one and all of them (if it is slow):
    max(c, backward/buckets + buckets c - backward).
    This holds if communication needs no core that computes, as with the release's communication servers, and progresses by
    itself.
    """
    if buckets == 1:
        return communication(size)
    bucket = communication(size / buckets)
    return max(bucket, backward / buckets + buckets * bucket - backward)


# --- The slowest rank -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1000)
def slowest(ranks: int, spread: float, backup: int = 0) -> float:
    """Expected time of the slowest of `ranks`, as a multiple of the median rank's; with `backup` ranks, of the first `ranks`.

    Times are assumed log-normal with a standard deviation of `spread` (of the logarithm) and independent between ranks: the
    mean of exp(spread * z(u)) with z the normal quantile, over the quantiles u of the last that is waited for. Of n uniform
    numbers the k-th smallest has the beta distribution (k, n - k + 1), here (ranks, backup + 1); 1 - u has (backup + 1, ranks).
    """
    points = (np.arange(4000) + 0.5) / 4000
    return float(np.exp(-spread * ndtri(betaincinv(backup + 1, ranks, points))).mean())


# --- Fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The model fitted to the measurements on one node. In seconds unless noted otherwise."""

    per_step: float
    per_worker: float
    per_image: float
    loading: float  # per image, on top of the step with its images in memory
    link: Link  # between the ranks of the node
    spread: float  # between ranks, see `slowest`
    ranks: int  # number of ranks that computed at the same time
    size: int  # bytes allreduced at each step
    copying: float = 0.0  # per byte that a rank sends while others compute, of the cores that compute; 0 if others do it

    def compute(self, images: float, workers: int = 1) -> float:
        """Median seconds of one rank's step with `images` images per worker, without communication."""
        return self.per_step + workers * (self.per_worker + self.per_image * images)


def fit(measurements: list[dict], ranks: int = 0) -> Fit:
    """Fits the model to the rows of a probe, with all its ranks computing at once, or only `ranks` of them.

    A row is {"kind", "ranks", "vector": bytes of a step's allreduce, ..., "seconds": a list of times for each rank}. Kinds:
    compute (images per worker, workers per rank: `ranks` at once, without communication), allreduce (bytes), loading (as
    compute, by all ranks with communication and the loader), step (the same with images in memory; only loading is compared
    with it, so it is held back from everything else). The fit is relative least squares over medians, without negative
    coefficients. Raises ReproError if there are no rows to fit.
    """
    all_ranks = max((row["ranks"] for row in measurements), default=1)
    ranks = ranks or all_ranks
    compute = [row for row in measurements if row["kind"] == "compute" and row["ranks"] == ranks]
    if not compute:
        raise ReproError(f"there are no compute rows of {ranks} ranks to fit: run `mpiexec -n {ranks} python -m repro probe`")
    columns = [[1, row["workers"], row["workers"] * row["images"]] for row in compute]
    several = [len({row[key] for row in compute}) > 1 for key in ("workers", "images")]
    # Parts that were not varied cannot be separated: they count towards the next finer part.
    per_step, per_worker, per_image = _nonnegative(
        np.array(columns, float) * [*several, True], [median(row) for row in compute]
    )
    vector = measurements[0]["vector"]
    loading, link = _loading(measurements, all_ranks), _link(measurements, all_ranks, vector)
    return Fit(per_step, per_worker, per_image, loading, link, _spread(compute), ranks, vector)


def _link(measurements: list[dict], ranks: int, vector: int) -> Link:
    """Latency from messages up to 64 KB, fitted by a line with its own slope; then one slope for what fits into the cache,
    from the messages up to there, and one for what is beyond, from those of 4 `CACHE` or more that have at least a quarter
    of the vector, or else from the longest.
    """
    rows = sorted((row["bytes"], median(row)) for row in measurements if row["kind"] == "allreduce" and row["ranks"] == ranks)
    if not rows:
        return Link(0.0, 0.0)
    rounds, sent = _messages(ranks)
    short = [row for row in rows if row[0] <= 1 << 16] or rows[:1]
    latency, _ = _nonnegative(np.array([(rounds, sent * size) for size, _ in short], float), [time for _, time in short])

    def slope(chosen: list[tuple[int, float]], known: Link, start: float) -> float:
        return float(
            np.median([max(0.0, time - known.seconds(rounds, start)) / (sent * size - start) for size, time in chosen])
        )

    inside = [row for row in rows if 1 << 16 < sent * row[0] <= CACHE] or rows[-1:]
    link = Link(latency, slope(inside, Link(latency, 0.0), 0.0))
    long = [row for row in rows if row[0] >= 4 * CACHE]
    long = [row for row in long if row[0] >= vector / 4] or long[-1:]
    return replace(link, beyond=slope(long, link, CACHE)) if long else link


def copying(measurements: list[dict], fitted: Fit, buckets: int) -> tuple[float, list[dict]]:
    """Seconds per byte that hidden communication takes from the cores that compute; and the rows that are left to predict.

    From the steps of nodes with one rank each, at the largest number of images, where the backward pass hides most: the time
    that they take beyond the model without copying, per byte that a rank sends.
    """
    steps = [row for row in measurements if row["kind"] == "step"]
    most_images = max(row["images"] for row in steps)
    used = [row for row in steps if row["images"] == most_images]
    costs = []
    for row in used:
        layout = Layout(nodes=row["ranks"], buckets=buckets)
        free = step(replace(fitted, copying=0.0), layout, row["images"], row["workers"], fitted.link)["total"]
        costs.append(max(0.0, median(row) - free) / (_messages(row["ranks"])[1] * fitted.size))
    return float(np.median(costs)), [row for row in measurements if row not in used]


def _nonnegative(columns: np.ndarray, seconds: list[float]) -> list[float]:
    times = np.array(seconds)
    return [float(value) for value in nnls(columns / times[:, None], np.ones(len(times)))[0]]


def median(row: dict) -> float:
    """Median over all ranks' times; if a step ends with a collective, over the slowest rank's, since all wait for it."""
    times = np.array(row["seconds"])
    return float(np.median(times if row["kind"] == "compute" else times.max(0)))


def _spread(rows: list[dict]) -> float:
    """Standard deviation of the logarithm of a rank's time about the other ranks' at the same moment.

    What slows all ranks equally makes none of them wait, so it does not count. A single rank has no others to compare with:
    then it is the deviation about its own median, which includes slow drifts.
    """
    squares = []
    for row in rows:
        times = np.log(row["seconds"])
        if len(times) > 1:
            squares.append(times.var(0, ddof=1).mean())
        else:
            squares.append(((times - np.median(times)) ** 2).mean())
    return float(np.mean(squares) ** 0.5)


def _loading(measurements: list[dict], ranks: int) -> float:
    """Seconds per image that the loader adds to a step with images in memory; zero if it was not measured."""

    def of(kind):
        return {
            (row["images"], row["workers"]): median(row)
            for row in measurements
            if row["kind"] == kind and row["ranks"] == ranks
        }

    loaded, in_memory = of("loading"), of("step" if ranks > 1 else "compute")
    extra = [(loaded[key] - in_memory[key]) / (key[0] * key[1]) for key in loaded if key in in_memory]
    return max(0.0, float(np.mean(extra))) if extra else 0.0


# --- Probes on disk ---------------------------------------------------------------------------------------------------


def save(measured: dict, path: Path) -> None:
    """Writes a probe, or several under "probes"."""
    with replacing(writable_folder(path.parent) / path.name) as temporary:
        temporary.write_text(json.dumps(measured))


def saved(folder: Path, facts: dict) -> dict:
    """A probe in probe.json or scaling.json of `folder` that has all these facts; empty if there is none."""
    for path in (folder / "probe.json", folder / "scaling.json"):
        if path.exists():
            content = json.loads(path.read_text())
            for measured in content.get("probes", [content]):
                if all(measured.get(key) == value for key, value in facts.items()):
                    return measured
    return {}


# --- Predicting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interconnect:
    """An assumption about the network between nodes: ranges, because it was not measured here, and the reason for them."""

    name: str
    latency: tuple[float, float]  # seconds
    rate: tuple[float, float]  # bytes per second of a long message, including its addition
    reason: str

    def link(self, place: float = 0.5) -> Link:
        """The link at a position within both ranges, from 0 (slowest) to 1 (fastest)."""
        fast, slow = self.latency
        return Link(slow + place * (fast - slow), 1 / (self.rate[0] + place * (self.rate[1] - self.rate[0])))


OMNI_PATH = Interconnect(
    "Omni-Path",
    latency=(1e-6, 10e-6),
    rate=(0.4 * 12.5e9, 0.9 * 12.5e9),
    reason="the released runs' network: 100 Gbit/s nominal, of which an allreduce with its additions is taken to reach 40 to "
    "90%; latency from the adapter's own to ten times that",
)
ETHERNET = Interconnect(
    "10 Gbit/s Ethernet",
    latency=(20e-6, 100e-6),
    rate=(0.6 * 1.25e9, 0.95 * 1.25e9),
    reason="plain nodes of a laboratory or a cloud, by TCP: 60 to 95% of the nominal rate",
)
INTERCONNECTS = dict(zip(BETWEEN_NODES, (OMNI_PATH, ETHERNET), strict=True))


@dataclass(frozen=True)
class Layout:
    """Number of nodes and ranks, and how they average."""

    nodes: int = 1
    per_node: int = 1
    buckets: int = 1  # see `exposed`; nothing is hidden on one node, where the cores that copy also compute
    backup: int = 0  # ranks besides, so that the last so many of a step are not waited for (Chen et al., arXiv 1604.00981)

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


def step(fitted: Fit, layout: Layout, images: float, workers: int = 1, link: Link | None = None, loaded: bool = False) -> dict:
    """One step's seconds: compute, waiting (for the slowest rank), copying, allreduce (exposed), loading, total.

    `images` per worker, `workers` per rank; `link` between nodes; `loaded` counts the loader.
    """
    for name, value in (
        ("nodes", layout.nodes),
        ("ranks per node", layout.per_node),
        ("buckets", layout.buckets),
        ("workers", workers),
    ):
        if value < 1:
            raise ReproError(f"{name} is {value}: it must be at least 1")
    if layout.nodes > 1 and link is None:
        raise ReproError(f"{layout.nodes} nodes need a link between them: one of {', '.join(INTERCONNECTS)}")
    compute = fitted.compute(images, workers)

    def communication(size: float) -> float:
        return allreduce(link or fitted.link, layout.nodes, size, fitted.link, layout.per_node)

    buckets = layout.buckets if layout.nodes > 1 else 1
    sent = (_messages(layout.nodes)[1] + _messages(layout.per_node)[1]) * fitted.size
    copying = fitted.copying * sent if buckets > 1 else 0.0
    parts = {
        "compute": compute,
        "waiting": compute * (slowest(layout.ranks, fitted.spread, layout.backup) - 1),
        "copying": copying,
        "allreduce": exposed(communication, fitted.size, buckets, BACKWARD * compute),
        "loading": fitted.loading * images * workers if loaded else 0.0,
    }
    return parts | {"total": sum(parts.values())}


def asynchronous(fitted: Fit, layout: Layout, groups: int, images: float, link: Link) -> float:
    """Seconds in which each of `groups` groups, of `layout` each, has given a server one gradient: as many images as a step.

    No group waits for another, but for the server, which exchanges gradient and weights with one group at a time. Within a
    group a step is synchronous. Several servers with a part of the weights each would exchange faster.
    """
    exchange = link.seconds(2, 2 * fitted.size)
    return max(step(fitted, layout, images, 1, link)["total"] + exchange, groups * exchange)


def resampled(measurements: list[dict], draws: int) -> list[Fit]:
    """Fits to bootstrap samples: each row's times drawn with replacement, those of all ranks at one moment together."""
    generator, fits = np.random.default_rng(0), []
    for _ in range(draws):
        rows = []
        for row in measurements:
            times = np.array(row["seconds"])
            rows.append(row | {"seconds": times[:, generator.integers(times.shape[1], size=times.shape[1])]})
        fits.append(fit(rows))
    return fits


def band(values: Iterable[float]) -> dict:
    """The median, and the 5% and 95% points."""
    low, middle, high = np.percentile(list(values), [5, 50, 95])
    return {"low": float(low), "middle": float(middle), "high": float(high)}


@dataclass(frozen=True)
class Load:
    """What stays constant while nodes are added: `weak`, the images per worker; `strong`, also the global batch."""

    scaling: str
    images: int  # per worker
    workers: int = 0  # of the recipe, for strong scaling

    def on(self, ranks: int) -> tuple[float, int, float]:
        """Images per worker, workers per rank, and the global batch.

        Strong: a rank has its share of the recipe's workers; if there are more ranks than workers, they divide the workers.
        """
        if choose("scaling", self.scaling, ("weak", "strong")) == "weak":
            return self.images, 1, self.images * ranks
        batch = self.images * self.workers
        return (batch / ranks, 1, batch) if ranks > self.workers else (self.images, ceil(self.workers / ranks), batch)


def extrapolate(
    measurements: list[dict], load: Load, nodes: Iterable[int], layout: Layout, between: Interconnect, draws: int = 200
) -> list[dict]:
    """A step's seconds, images/s and efficiency over nodes, each with a 5 to 95% band; `layout` gives everything but the nodes.

    The bands cover the noise of the measurements (bootstrap; tests take fewer `draws`) and the interconnect within its ranges,
    but not whether the model has the right form: see `held_back`. Fewer than three timed steps (n) do not show how they
    differ: the band is NaN. Efficiency is throughput per node over that of a node whose ranks neither average nor wait for one
    another, in per cent: it cannot exceed 100, also where the allreduce of several nodes is hidden and that of one node is not.
    """
    timed = min(len(row["seconds"][0]) for row in measurements if row["kind"] == "compute" and row["ranks"] == layout.per_node)
    fits = resampled(measurements, draws)
    links = [between.link(place) for place in np.random.default_rng(1).random(draws)]
    alone = replace(layout, nodes=1)
    images, workers, batch = load.on(alone.ranks)
    ones = [batch / fitted.compute(images, workers) for fitted in fits]
    rows = []
    for count in nodes:
        target = replace(layout, nodes=count)
        images, workers, batch = load.on(target.ranks)
        if images < 1:  # more ranks than images
            continue
        seconds = [step(fitted, target, images, workers, link)["total"] for fitted, link in zip(fits, links)]
        rates = [batch / second for second in seconds]
        row = {
            "label": MODEL,
            "scaling": load.scaling,
            "nodes": count,
            "ranks": target.ranks,
            "global_batch": round(batch),
            "images_per_rank": images * workers,
            "buckets": layout.buckets,
            "interconnect": between.name,
            "n": timed,
        }
        for name, values in (
            ("seconds", seconds),
            ("images_per_s", rates),
            ("efficiency", [100 * rate / count / one for rate, one in zip(rates, ones)]),
        ):
            points = band(values) | ({} if timed >= 3 else {"low": np.nan, "high": np.nan})
            row |= {name: points["middle"], f"{name}_low": points["low"], f"{name}_high": points["high"]}
        rows.append(row)
    return rows


# --- Checks -----------------------------------------------------------------------------------------------------------


def held_back(
    steps: list[dict], fitted: Fit, check: str, nodes: int = 1, buckets: int = 1, between: Link | None = None
) -> list[dict]:
    """Predicts the `step` rows, which no fit has used: predicted and measured seconds, n, and the error in per cent.

    Their ranks are on `nodes` nodes, joined by the link `between`, or by that of the fit.
    """
    rows = []
    for row in steps:
        if row["kind"] == "step":
            layout = Layout(nodes, row["ranks"] // nodes, buckets)
            predicted = step(fitted, layout, row["images"], row["workers"], between or fitted.link)["total"]
            rows.append(
                {
                    "check": check,
                    "ranks": row["ranks"],
                    "images": row["images"],
                    "n": len(row["seconds"][0]),
                    "predicted": predicted,
                    "measured": median(row),
                    "error_percent": 100 * (predicted / median(row) - 1),
                }
            )
    return rows


def noise(measurements: list[dict]) -> float:
    """By how much the same quantity differs if it is measured twice, in per cent: a row's first half against its second.

    The median over the rows with at least four times; NaN if there are none.
    """
    differences = []
    for row in measurements:
        times = np.array(row["seconds"])
        half = times.shape[1] // 2
        if half >= 2:
            first, second = (median(row | {"seconds": part}) for part in (times[:, :half], times[:, half : 2 * half]))
            differences.append(100 * abs(first / second - 1))
    return float(np.median(differences)) if differences else float("nan")


@dataclass(frozen=True)
class Published:
    """A published run's throughput and layout."""

    name: str
    nodes: int
    per_node: int
    images: float  # per process
    images_per_s: float


@dataclass(frozen=True)
class Assumed:
    """Quantities that were not published, as ranges. Each is a guess with a reason; none is a measurement."""

    between: Interconnect = OMNI_PATH
    within_rate: tuple[float, float] = (3e9, 10e9)  # bytes/s between two processes: memory is read and written several times
    size: int = 4 * 25_557_096  # bytes: float32 gradients of the released network's parameters
    buckets: tuple[int, ...] = (1, 53)  # nothing hidden, or one bucket per convolution, by servers on their own cores
    fixed: tuple[float, float] = (0.0, 0.2)  # share of a step of 32 images that does not shrink with the images
    spread: tuple[float, float] = (0.0, 0.05)  # between ranks; none was published


def _as_known(known: Published, machine: Fit, link: Link, buckets: int) -> Fit | None:
    """The machine with its time per image scaled so that the known run has its published rate.

    None if communication alone would take longer than the published step.
    """

    def scaled(factor: float) -> Fit:
        return replace(machine, per_worker=factor * machine.per_worker, per_image=factor * machine.per_image)

    def seconds(factor: float) -> float:
        layout = Layout(known.nodes, known.per_node, buckets=buckets)
        return step(scaled(factor), layout, known.images, 1, link)["total"]

    target = known.nodes * known.per_node * known.images / known.images_per_s
    if seconds(0.0) >= target:
        return None
    return scaled(brentq(lambda factor: seconds(factor) - target, 0.0, target))


def fitted_machines(known: Published, assumed: Assumed, draws: int) -> Iterator[tuple[Fit, Link, int]]:
    """Machines, links and buckets on which the known run has its published rate, all assumptions drawn from their ranges."""
    generator = np.random.default_rng(0)
    for _ in range(draws):
        link, buckets = assumed.between.link(generator.random()), int(generator.choice(assumed.buckets))
        share, spread = generator.uniform(*assumed.fixed), generator.uniform(*assumed.spread)
        within = Link(1e-6, 1 / generator.uniform(*assumed.within_rate))
        machine = Fit(0.0, share / (1 - share) * 32, 1.0, 0.0, within, spread, known.per_node, assumed.size)
        if fitted := _as_known(known, machine, link, buckets):
            yield fitted, link, buckets


def on_known_nodes(known: Published, nodes: Iterable[int], images: int, draws: int = 500) -> list[dict]:
    """Where a step's time goes on `nodes` of the known run's nodes with `images` per process, and the efficiency.

    Efficiency is the share of the step that computes, in per cent: throughput against nodes without any allreduce or waiting.
    Rows: label, known, nodes, images, buckets (1: nothing hidden), then the medians of compute, waiting, allreduce (seconds),
    and images_per_s and efficiency with their 5 to 95% bands over the ranges of `Assumed` (tests take fewer draws).
    """
    rows, assumed = [], Assumed()
    machines = {
        buckets: list(fitted_machines(known, replace(assumed, buckets=(buckets,)), draws)) for buckets in assumed.buckets
    }
    for count in nodes:
        for buckets in assumed.buckets:
            layout = Layout(count, known.per_node, buckets=buckets)
            steps = [step(machine, layout, images, 1, link) for machine, link, _ in machines[buckets]]
            row = {"label": MODEL, "known": known.name, "nodes": count, "images": images, "buckets": buckets}
            row |= {part: band(each[part] for each in steps)["middle"] for part in ("compute", "waiting", "allreduce")}
            for name, values in (
                ("images_per_s", [layout.ranks * images / each["total"] for each in steps]),
                ("efficiency", [100 * each["compute"] / each["total"] for each in steps]),
            ):
                points = band(values)
                row |= {name: points["middle"], f"{name}_low": points["low"], f"{name}_high": points["high"]}
            rows.append(row)
    return rows


def of_groups(
    known: Published, nodes: int, groups: int, images: int, backup: float, spreads: Iterable[float], draws: int = 500
) -> list[dict]:
    """Seconds of as many images as a step has, of groups of `nodes` nodes like the known run's, but of ranks that differ more.

    line: synchronous; synchronous with a share of `backup` of the ranks besides; asynchronous between the groups. `images` per
    process; `spreads` between ranks, see `slowest`. Nothing is averaged or exchanged during the backward pass. Rows: label,
    known, line, groups, nodes, spread, seconds with their 5 to 95% band over the ranges of `Assumed`.
    """
    rows, machines = [], list(fitted_machines(known, Assumed(buckets=(1,)), draws))
    layout, one = (Layout(count * nodes, known.per_node) for count in (groups, 1))
    spare = replace(layout, backup=ceil(backup * layout.ranks))
    for spread in spreads:
        differing = [(replace(machine, spread=spread), link) for machine, link, _ in machines]
        lines = {
            "synchronous": [step(machine, layout, images, 1, link)["total"] for machine, link in differing],
            "synchronous, with backup ranks": [step(machine, spare, images, 1, link)["total"] for machine, link in differing],
            "asynchronous": [asynchronous(machine, one, groups, images, link) for machine, link in differing],
        }
        for line, seconds in lines.items():
            points = band(seconds)
            row = {"label": MODEL, "known": known.name, "line": line, "groups": groups, "nodes": layout.nodes, "spread": spread}
            rows.append(row | {"seconds": points["middle"], "seconds_low": points["low"], "seconds_high": points["high"]})
    return rows


def infer(known: Published, others: list[Published], assumed: Assumed = Assumed(), draws: int = 500) -> list[dict]:
    """Fits the time per image to one published throughput and predicts others, with all assumptions drawn from their ranges.

    Rows: label, known, predicted (its name), images_per_s with its 5 to 95% band, published, error in per cent. Only tests,
    which know the machine that they have made up, assume anything else or take fewer draws.
    """
    rates = {other.name: [] for other in others}
    for machine, link, buckets in fitted_machines(known, assumed, draws):
        for other in others:
            layout = Layout(other.nodes, other.per_node, buckets=buckets)
            seconds = step(machine, layout, other.images, 1, link)["total"]
            rates[other.name].append(other.nodes * other.per_node * other.images / seconds)
    rows = []
    for other in others:
        points = band(rates[other.name])
        rows.append(
            {
                "label": MODEL,
                "known": known.name,
                "predicted": other.name,
                "images_per_s": points["middle"],
                "images_per_s_low": points["low"],
                "images_per_s_high": points["high"],
                "published": other.images_per_s,
                "error_percent": 100 * (points["middle"] / other.images_per_s - 1),
            }
        )
    return rows
