"""Every figure: text that is text, a PDF beside it, the same bytes twice, one look for one thing, and labels that are apart."""

import itertools
import os
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text

from repro import recipes
from repro.paper import figures, names, tables

from conftest import ROOT, python

REFERENCE = ROOT / "results" / "reference"
NAN = float("nan")
ENSEMBLE_TABLES = "calibration", "pairs", "paths", "sharpness", "costs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rates():
    found = tables.rates([recipes.find("collapsed_ensemble")], points=50)
    return found[found.formula == "as_released"]


def points():
    """A budget with two lines, and three models with the same number of epochs whose means almost meet."""
    drawn = [(names.MEMBER, True, n, 2.0 * n, 80 + n) for n in range(1, 4)]
    drawn += [(names.ENSEMBLE, True, n, 2.0 * n, 83.0) for n in range(2, 4)]
    drawn += [(names.ONE_MODEL, False, 1, 5.0, 82.0), (names.SNAPSHOTS, False, 3, 5.0, 82.01)]
    drawn += [(names.THREE_MODELS, False, 3, 5.0, 81.99)]
    rows = [(*row[:4], row[4] + seed / 10, seed, "digits") for row in drawn for seed in range(3)]
    return pd.DataFrame(rows, columns=["label", "line", "members", "epochs", "top1", "seed", "data"])


def by_time():
    """`tables.anytime` of made-up accuracies of every model that it draws, and of others, each with its own epochs."""
    chosen = ["constant_trunk", "planned_3_tenths", "planned_7_tenths", "tuned_one_model", "tuned_ensemble", "five_members"]
    chosen += [f"epochs_{n}_batch_4096" for n in (30, 60, 90, 120)]
    rows = []
    for recipe in map(recipes.find, chosen):
        for stage in recipe.stages:
            done = sum(each.iterations * recipe.batch(each) for each in recipe.lineage([stage.name])) / recipe.epoch_images
            row = dict(recipe=recipe.name, members=stage.name, average="", epochs=done, data="digits")
            row |= dict(variant="", default_model=True)
            rows += [row | dict(seed=seed, top1=70 + done**0.5 + seed / 3 + len(stage.name) / 9) for seed in range(3)]
    return tables.anytime(pd.DataFrame(rows))


def test_what_is_planned_has_the_epochs_of_the_tenth_beside_it():
    epochs = by_time().groupby(["label", "members"]).epochs.first()
    assert len(epochs[names.CONSTANT_TRUNK]) == 10 and epochs[names.CONSTANT_TRUNK].is_monotonic_increasing
    assert epochs[names.PLANNED].to_dict() == epochs[names.CONSTANT_TRUNK][[3, 7, 10]].to_dict()


def answers():
    return pd.read_csv(REFERENCE / "tables" / "answers.csv").fillna({"shrink": ""})


def own_answers():
    """As in somebody's own table: no topic, control or other views; one interval is missing, one is far too wide."""
    rows = [("Mine is better", 0.5, 0.2, 0.8, "supported"), ("Mine is as fast", -0.1, NAN, NAN, "not resolved")]
    rows += [("Mine needs warm-up", 20.0, -40.0, 80.0, "not resolved"), ("A longer one wins", -0.7, -1.0, -0.4, "contradicted")]
    table = pd.DataFrame(rows, columns=["claim", "difference", "low", "high", "verdict"])
    return table.assign(n=3, n_other=3, margin=0.3)


def to_accuracy():
    measured = [(names.LINEAR, 2048, 12.0), (names.LINEAR, 8192, NAN), (names.LARS, 32768, 12.0), (names.COLLAPSED, 4096, 4.0)]
    measured = pd.DataFrame(measured, columns=["method", "batch", "epochs"]).assign(target=79.7)
    return tables.published_time_to_accuracy(draws=5), tables.time_to_accuracy(measured, draws=5)


def drawings():
    yield "headline", figures.headline(rates(), points())
    yield "rates", figures.learning_rates(tables.rates([recipes.find("resnet50_448nodes")], points=20))
    yield "budget", figures.budget(points())
    yield "anytime", figures.budget(by_time())
    yield "method", figures.headline(rates(), points().iloc[:0])
    yield "long name", figures.headline(rates(), points().assign(data="imagenet_folder"))
    yield "answers", figures.answers(answers())
    for topic, part in answers().query("n > 0 and n_other > 0").groupby("topic"):
        yield f"answers-{topic}", figures.answers(part)
    yield "own", figures.answers(own_answers())
    yield "time", figures.time_to_train(tables.time_to_train())
    kept = {name: pd.read_csv(REFERENCE / "tables" / f"ensemble_{name}.csv") for name in ENSEMBLE_TABLES}
    models = {("five_members", "collapse3"): "a member", ("one_model", "collapse_long"): "one model"}
    yield "reliability", figures.reliability(kept["calibration"], models)
    yield "disagreement", figures.disagreement(kept["pairs"])
    yield "paths", figures.paths(kept["paths"])
    yield "sharpness", figures.sharpness(kept["sharpness"])
    yield "costs", figures.budget(kept["costs"], "operations")
    yield "to accuracy", figures.time_to_accuracy(*to_accuracy())
    yield "step", figures.step_parts(pd.read_csv(REFERENCE / "tables" / "scaling_papers_nodes.csv"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("figures") for _ in range(2)]
    for folder in folders:
        for name, figure in itertools.islice(drawings(), 3):
            figures.save(figure, pd.DataFrame({"x": [1]}), folder, name)
    return [folder / "figures" for folder in folders]


def test_text_is_text_and_beside_each_svg_is_a_pdf_with_its_fonts(saved):
    files = sorted(saved[0].glob("*.svg"))
    assert len(files) == 3
    for path in files:
        texts = ["".join(text.itertext()) for text in ET.parse(path).iter(f"{SVG}text")]
        assert len(texts) > 5, path.name
        pdf = path.with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and (b"/CIDFontType2" in pdf or b"/TrueType" in pdf), path.name
        assert b"/Type3" not in pdf, path.name
    words = " ".join("".join(text.itertext()) for text in ET.parse(saved[0] / "headline.svg").iter(f"{SVG}text"))
    assert "cycle 1" in words and "the ensemble" in words


USERS = """
axes.facecolor: eeeeee
axes.formatter.use_locale: True
backend: TkAgg
figure.autolayout: True
font.family: serif
grid.linestyle: :
lines.marker: x
savefig.bbox: tight
svg.fonttype: path
text.usetex: True
timezone: Asia/Tokyo
xtick.direction: in
"""


@pytest.fixture
def users(tmp_path):
    """The environment of a user with a matplotlibrc, in a place with another time."""
    (tmp_path / "matplotlibrc").write_text(USERS)
    return {"MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Tokyo"}


def test_the_settings_of_a_user_change_no_byte(saved, users, tmp_path):
    draw = (
        "import itertools, sys, pandas as pd, test_figures\nfrom bench import figures as of_the_bench\n"
        "for name, figure in itertools.islice(test_figures.drawings(), 3):\n"
        "    test_figures.figures.save(figure, pd.DataFrame({'x': [1]}), sys.argv[1], name)"
    )
    drawn = python("-c", draw, tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **users)
    assert drawn.returncode == 0, drawn.stderr
    for file in sorted(saved[0].iterdir()):
        assert (tmp_path / "figures" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_second_run_writes_the_same_bytes(saved):
    first, second = saved
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_figures_are_as_wide_as_one_or_two_columns(saved):
    for path in saved[0].glob("*.svg"):
        width = float(ET.parse(path).getroot().get("width").removesuffix("pt")) / 72
        assert width == pytest.approx(figures.ONE_COLUMN if path.stem == "rates" else figures.TWO_COLUMNS), path.name


def grey(colour):
    """Relative luminance of a colour by WCAG 2, from 0 to 1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return np.dot((0.2126, 0.7152, 0.0722), linear)


def test_what_has_not_its_own_grey_has_its_own_marker_or_line():
    shown_together = [
        [names.MEMBER, names.ENSEMBLE, names.ONE_MODEL, names.ONE_AT_4096]
        + [names.SNAPSHOTS, names.SNAPSHOTS_IN_CROP, names.THREE_MODELS],
        ["supported", "contradicted", "equivalent", "not resolved"],
        ["as_released", "as_designed"],
        ["with warm-up", "without warm-up"],
        [names.MEMBERS_OF_ONE, names.SAME_OF_TWO, names.THREE_MODELS],
        [*names.PAIRS],
        [names.BEFORE, names.AFTER],
        ["weak", "strong"],
        ["compute", "waiting", "allreduce"],
    ]
    for group in shown_together:
        for one, other in itertools.combinations(group, 2):
            first, second = names.LOOKS[one], names.LOOKS[other]
            assert first[1:] != second[1:] or abs(grey(first.colour) - grey(second.colour)) > 0.2, (one, other)
    assert {look.colour for look in names.LOOKS.values()} <= set(names.COLOURS.values())
    assert (1 + 0.05) / (grey(names.GREY) + 0.05) > 4.5, "grey text on white"


def test_labels_are_apart_and_on_the_page():
    """The boxes are matplotlib's own, of the text without its line."""
    for name, figure in drawings():
        figure.canvas.draw()
        page = figure.bbox.padded(1)
        for axis in figure.axes:
            inside = [text for text in axis.texts if text.get_text()]
            boxes = {text: Text.get_window_extent(text) for text in inside}
            for one, other in itertools.combinations(inside, 2):
                apart = not boxes[one].shrunk(0.97, 0.9).overlaps(boxes[other].shrunk(0.97, 0.9))
                assert apart, (name, one.get_text(), other.get_text())
            for text in [*inside, axis.xaxis.label, axis.yaxis.label, axis._left_title]:
                box = Text.get_window_extent(text)
                assert not text.get_text() or page.containsx(box.x0) and page.containsx(box.x1), (name, text.get_text(), box)
                assert not text.get_text() or page.containsy(box.y0) and page.containsy(box.y1), (name, text.get_text(), box)


def test_no_text_is_below_8_points():
    for name, figure in drawings():
        small = [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_fontsize() < 8]
        assert not small, (name, small)


def test_a_users_own_answers_are_drawn_with_their_numbers_and_verdicts():
    figure = figures.answers(own_answers())
    assert figure.get_figwidth() == figures.ONE_COLUMN and len(figure.axes) == 1
    (axis,) = figure.axes
    texts = [text.get_text() for text in axis.texts]
    assert "Mine is better" in texts and "+0.50\nsupported" in texts and "\u22120.70\ncontradicted" in texts
    low, high = axis.get_xlim()
    assert low < -1.0 and 20 < high < 80, "an interval that is many times as wide as the others does not set the axis"


def test_what_a_figure_of_answers_draws_is_said_in_it():
    table = answers().query("topic == 'length' and n > 0")
    figure = figures.answers(table)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "test view, 95% interval; n = 6 seeds a side",
        "the same, test images enlarged",
        "the same, images cut as in training",
        "within \u00b10.3: too small to count",
        "\u22120.5 to 0: allowed by the claim",
    ]
    looks = {(names.LOOKS[verdict].colour, names.LOOKS[verdict].marker) for verdict in table.verdict}
    handles = {(line.get_color(), line.get_marker()) for line in legend.findobj(Line2D)}
    assert handles >= looks and len(looks) == 3


def test_the_number_of_seeds_is_said_once():
    """In the legend, or at each side if they differ; there it stays on one line with its n."""
    table = own_answers().assign(better="a side with a long name, which is wrapped", other="the other", n=5, n_other=5)
    (same,) = figures.answers(table).axes
    assert not any("n\xa0=" in text.get_text() for text in same.texts)
    (differ,) = figures.answers(table.assign(n_other=6)).axes
    said = [text.get_text() for text in differ.texts if "minus" in text.get_text()]
    assert said and all("n\xa0=\xa05" in text and "n\xa0=\xa06" in text for text in said)


def test_differences_that_are_far_apart_can_all_be_read():
    """Without warm-up some runs fail: intervals are up to 65 points wide, and others are within one."""
    for topic, scale in (("warm-up", "symlog"), ("ensemble", "linear")):
        (axis,) = figures.answers(answers().query(f"topic == '{topic}'")).axes
        assert axis.get_xscale() == scale
        left, right = axis.transData.transform([(-0.3, 0), (0.3, 0)])[:, 0]
        assert right - left > axis.bbox.width / 20, "the band around zero can be seen"


def curve(folder, steps, losses, top1):
    rows = {"step": steps, "epoch": [step / 100 for step in steps], "train_loss": losses, "top1": top1}
    keys = dict(folder=folder, recipe="mine", shrink="", model="resnet11", variant="", data="digits", seed=0)
    return pd.DataFrame(rows).assign(**keys, stage="main", rate=1.0)


def test_a_row_of_one_step_is_no_jump_of_the_training_loss():
    """The row after an evaluation one step before the end of an epoch is the loss of a single step."""
    curves = curve("a", [100, 199, 200, 300], [2.0, 1.5, 9.0, 1.0], [NAN, 50.0, NAN, 60.0])
    (line,) = figures.training_curves(curves, "train_loss").axes[0].lines[:1]
    assert list(line.get_ydata()) == pytest.approx([2.0, (99 * 1.5 + 9.0) / 100, 1.0])
    assert list(line.get_xdata()) == [1, 2, 3]
    (line,) = figures.training_curves(curves).axes[0].lines[:1]
    assert list(line.get_ydata()) == [50, 60]


def test_a_stage_is_drawn_from_where_its_weights_come():
    """Both collapses of a recipe that branches start at the end of the trunk, not where the one before ended."""
    stages = [("main", [1, 2], 1.0), ("plain", [3], 0.0), ("zero-crop-x2", [4], 0.0)]
    parts = [
        curve("a", epochs, [1.0] * len(epochs), [50.0] * len(epochs)).assign(stage=stage, rate=rate)
        for stage, epochs, rate in stages
    ]
    curves = pd.concat(parts).assign(recipe="collapse_parts")
    curves["epoch"] = curves.step
    axis = figures.training_curves(curves).axes[0]
    drawn = [list(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) > 1]
    assert drawn == [[1, 2], [2, 3], [2, 3]]


def test_every_recipe_has_a_name_of_its_own_and_yours_keeps_its():
    shown = [names.recipe(name) for name in recipes.RECIPES]
    assert len(set(shown)) == len(shown)
    assert not [name for name in shown if "_" in name], "add what people call it to _RECIPES in repro/paper/names.py"
    assert names.recipe("my_recipe") == "my_recipe"


def test_a_figure_over_the_batch_has_a_line_of_medians_for_each_method():
    keys = dict(variant="", default_model=True, members="main", average="")
    top1 = {
        "batch_2048": [70.0, 74.0, 72.0],
        "batch_4096": [60.0, 61.0, 65.0],
        "lars_4096": [66.0],
        "batch_2048_no_warmup": [1.0],
    }
    rows = [(recipe, seed, value) for recipe, values in top1.items() for seed, value in enumerate(values)]
    models = pd.DataFrame(rows, columns=["recipe", "seed", "top1"]).assign(**keys)
    found = tables.batches(models, names.OVER_BATCH)
    assert sorted(map(tuple, found[["line", "batch", "top1"]].values)) == sorted(
        (names.LARS if "lars" in recipe else names.LINEAR, int(recipe.split("_")[1]), value)
        for recipe, _, value in rows
        if "no_warmup" not in recipe
    )
    (axis,) = figures.batches(found).axes
    medians = [list(line.get_ydata()) for line in axis.lines if line.get_linestyle() != "None"]
    assert medians == [[72.0, 61.0], [66.0]]
    assert set(tables.batches(models).line) == {"with warm-up", "without warm-up"}


def test_a_figure_over_groups_has_every_run_and_the_model_beside_it():
    keys = dict(variant="", default_model=True, members="main", average="")
    top1 = {
        "sequential": [80.0, 82.0, 81.0],
        "asynchronous_2_groups": [78.0],
        "asynchronous_8_groups": [70.0, 71.0],
        "synchronous_8_groups": [79.0],
        "asynchronous_8_groups_without_momentum": [74.0],
        "delay_compensation_8_groups": [75.0],
        "adaptive_delay_compensation_8_groups": [76.0],
    }
    rows = [(recipe, seed, value) for recipe, values in top1.items() for seed, value in enumerate(values)]
    found = tables.groups(pd.DataFrame(rows, columns=["recipe", "seed", "top1"]).assign(**keys))
    assert set(found[found.groups == 1].line) == {names.SYNCHRONOUS, names.ASYNCHRONOUS} and len(found) == len(rows) + 3
    seconds = tables.seconds_of_groups(draws=5)
    assert {*seconds.line} == {names.SYNCHRONOUS, names.BACKUP, names.ASYNCHRONOUS} and set(seconds.label) == {"MODEL"}
    assert set(seconds.nodes) == {1024} and len(seconds) == 3 * seconds.spread.nunique()
    wide = tables.seconds_of_groups(draws=100).pivot(index="spread", columns="line", values="seconds")
    faster = wide[names.ASYNCHRONOUS] < wide[names.SYNCHRONOUS]
    assert not faster[:0.075].any() and faster[0.125:].all() and (wide[names.BACKUP] <= wide.min(axis=1)).all(), "as docs say"
    accuracy, time = figures.groups(found, seconds).axes
    medians = [list(line.get_ydata()) for line in accuracy.lines if line.get_linestyle() != "None"]
    assert medians == [[81.0, 79.0], [81.0, 78.0, 70.5], [74.0], [75.0], [76.0]]
    assert "MODEL" in time.get_title("left") and len(time.lines) == 3


def test_the_style_is_set_by_the_module():
    assert matplotlib.rcParams["svg.fonttype"] == "none" and matplotlib.rcParams["pdf.fonttype"] == 42


def test_a_point_far_below_the_others_is_said_in_words():
    label = "a collapse at each tenth of a constant rate"
    top1 = [57.0, 79.0, 82.0, 83.0, 84.0, 84.5, 85.0]
    rows = [(label, True, 1.0 + epoch, value + shift) for epoch, value in enumerate(top1) for shift in (-0.5, 0.5)]
    points = pd.DataFrame(rows, columns=["label", "line", "epochs", "top1"])
    for part, bottom, said in ((points, 78, True), (points[points.epochs > 1], 79, False)):
        (axes,) = figures.budget(part).axes
        assert axes.get_ylim()[0] == bottom if said else axes.get_ylim()[0] < bottom
        assert ("\u2193 57.0" in [text.get_text() for text in axes.texts]) == said
