"""The report as a page: numbered figures and tables, contents that lead somewhere, no nan, and no markup from files."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from repro.paper import names, profiles, questions, report, reproduce, svg

from conftest import ROOT

REFERENCE = ROOT / "results" / "reference"
HOSTILE = "<img src=x onerror=alert(1)>"
PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 518 200">
<defs><style type="text/css">*{color: red}</style><path id="m1" d="M 0 0"/></defs><clipPath id="p1"><rect/></clipPath>
<g id="axes_1"><g clip-path="url(#p1)"><use xlink:href="#m1" style="fill: #0072b2; stroke: #222222"/></g>
<text style="fill: #222222">a &lt;b&gt; of a picture</text></g></svg>"""


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, ids, links, and the text of each figure and table cell."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def all(self, tag, name=None):
        return [attributes.get(name) if name else attributes for found, attributes in self.elements if found == tag]


@pytest.fixture
def results(tmp_path):
    """The reference's tables, and a picture for every figure."""
    shutil.copytree(REFERENCE / "tables", tmp_path / "tables")
    (tmp_path / "figures").mkdir()
    for name in ("headline", "learning_rates", "answers-collapse", "budget", "training_curves"):
        (tmp_path / "figures" / f"{name}.svg").write_text(PICTURE)
    return tmp_path


def change(results, name, **columns):
    path = results / "tables" / f"{name}.csv"
    table = pd.read_csv(path)
    for column, value in columns.items():
        table[column] = value(table[column]) if callable(value) else value
    table.to_csv(path, index=False)


def page_of(results, *arguments):
    text = report.write(results, *arguments).read_text()
    page = Page(text)
    assert page.open == [], "every element is closed"
    return text, page


def test_every_figure_has_a_number_a_caption_and_a_description_and_every_table_a_number(results):
    text, page = page_of(results)
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("svg")) == 5
    assert all(len(alt) > 20 for alt in page.all("svg", "aria-label")) and set(page.all("svg", "role")) == {"img"}
    for word, number in (("Figure", 5), ("Table", len(page.all("table")))):
        assert [int(found) for found in re.findall(rf"<b>{word} (\d+)\.</b>", text)] == list(range(1, number + 1))
    assert len(page.all("caption")) == len(page.all("table")) >= 10


def test_a_verdict_that_recomputed_statistics_change_says_so(results):
    claim = "The Collapsed Ensemble beats one model of equal images with the released collapse"
    again = {"data": "digits", "claim": claim, "difference": 0.12, "low": -0.1, "high": 0.34, "verdict": "not resolved"}
    said = "with batch norm&#39;s statistics computed anew: not resolved (+0.12, -0.10 to +0.34)"
    (results / "bench").mkdir()
    for verdict, expected in (("not resolved", 2), ("supported", 0), ("", 0)):  # the first page, and the finding
        pd.DataFrame([again | {"verdict": verdict}]).to_csv(results / "bench" / "precise_statistics.csv")
        assert page_of(results)[0].count(said) == expected


def test_contents_and_links_lead_somewhere_and_no_id_occurs_twice(results):
    _, page = page_of(results)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [link for link in page.all("a", "href") if link.startswith("#")]
    assert len(inside) >= 8 and {link[1:] for link in inside} <= set(ids)
    outside = {link for link in page.all("a", "href") if not link.startswith("#")}
    assert outside == {"https://arxiv.org/abs/1711.04291", "https://github.com/sara-nl/caffe"}
    assert not page.all("script") and not page.all("link") and not page.all("img")


def test_what_is_missing_is_an_empty_cell_and_whose_number_it_is_is_a_word(results):
    text, page = page_of(results)
    assert not re.search(r"\b(nan|NaN|None|inf)\b", text)
    assert all(not re.fullmatch(r"nan|\[.*\]|<.*>", cell) for cell in page.cells)
    for caption in re.findall(r"<(?:fig)?caption>(.*?)</(?:fig)?caption>", text, re.S):
        assert re.search(r'class="badge (published|own|model)">(PUBLISHED|OWN|MODEL)<', caption), caption


def test_columns_have_names_for_people_and_cells_say_their_column_on_a_narrow_window(results):
    text, page = page_of(results)
    headings = re.findall(r'<th scope="col" class="[\w ]+">(.*?)</th>', text)
    assert headings and not any("_" in heading for heading in headings)
    headings = re.findall(r'#(table-\d+) td:nth-child\(\d+\) { --heading: "[^"]+" }', text)
    assert len(headings) == len(page.all("th", "scope")) and {*headings} == {*filter(None, page.all("table", "id"))}


def test_two_runs_give_no_interval_and_no_nan(results):
    change(
        results, "answers", n=lambda n: n.clip(upper=2), n_other=lambda n: n.clip(upper=2), low=float("nan"), high=float("nan")
    )
    text, _ = page_of(results)
    assert "nan" not in text and "n = 2 seeds" in text
    findings = text[text.index('<section id="findings">') : text.index('<section id="scaling">')]
    assert '--heading: "95% interval"' not in findings


def test_names_from_files_are_text(results):
    for name, column in (("runs", "folder"), ("answers", "claim"), ("ledger", "ours"), ("accuracy", "members")):
        change(results, name, **{column: lambda values: values.where(values.isna(), HOSTILE)})
    change(results, "runs", processor=HOSTILE)
    text, page = page_of(results)
    assert not page.all("img") and not any("onerror" in attributes for _, attributes in page.elements)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 50


def test_runs_that_are_not_of_the_profile_are_counted_at_the_end_and_are_nowhere_else(results):
    path = results / "tables" / "runs.csv"
    runs = pd.read_csv(path)
    stray = runs.iloc[[0]].assign(folder="a-stray-run", shrink="laptop-few")
    pd.concat([runs, stray, stray, runs.iloc[[1]].assign(folder="half-a-run", status="stopped")]).to_csv(path, index=False)
    text, _ = page_of(results)
    rows = others(text)
    assert "Other runs found" in text and "a-stray-run" not in text and "half-a-run" not in text
    assert ["digits", "laptop-few", "complete", "2"] in rows and f"{(runs.data == 'digits').sum()} complete runs" in text
    assert ["digits", "laptop", "stopped", "1"] in [[row[0], row[1], row[-2], row[-1]] for row in rows]


def test_runs_by_another_code_than_the_newest_are_listed_at_the_end(results):
    path = results / "tables" / "runs.csv"
    runs = pd.read_csv(path).assign(code="older")
    runs = runs[runs.variant.isna() & (runs.data == "digits")]  # the newest code is found for each variant and data set
    newer = runs[runs.recipe == "one_model"].assign(code="newer", end="2100-01-01T00:00:00+00:00")
    pd.concat([runs[runs.recipe != "one_model"], newer]).to_csv(path, index=False)
    text, _ = page_of(results)
    assert f"from {len(newer)} complete runs" in text and f"{len(newer)} runs, " in text
    assert sum(int(row[-1]) for row in others(text)) == len(pd.read_csv(path)) - len(newer)


def others(text: str) -> list[list[str]]:
    """The rows of the table of other runs."""
    part = text[text.index('<section id="others">') :]
    found = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    return [cells for row in found if (cells := [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)])]


def test_a_page_of_another_data_set_shows_none_of_these_runs(results):
    text, page = page_of(results, "letters", "laptop")
    assert "No complete run of this data set and size answers a question yet." in text
    assert "There are no complete runs" in text and not re.search(r'href="#finding-', text)


def test_commands_name_notebooks_and_targets_that_exist(results):
    text, _ = page_of(results)
    for notebook in re.findall(r"notebooks/([\w-]+)\.ipynb", text):
        assert (ROOT / "notebooks" / f"{notebook}.ipynb").exists()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake ([\w-]+)", text)) <= set(targets)


def test_an_svg_becomes_part_of_the_page_with_ids_of_its_own_and_the_pages_colours():
    inline = svg.inline(PICTURE, "one", 'a "picture"')
    marker, clip = (re.search(rf'<{shape} id="(one-[0-9]+)"', inline)[1] for shape in ("path", "clipPath"))
    assert marker != clip and f'href="#{marker}"' in inline and f"url(#{clip})" in inline and "axes_1" not in inline
    assert "var(--blue)" in inline and "var(--ink)" in inline and "#222222" not in inline and "<style" not in inline
    assert "a &lt;b&gt; of a picture</text>" in inline and 'aria-label="a &quot;picture&quot;"' in inline


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<foreignObject><iframe src='http://x'/></foreignObject>",
        "<image href='http://x/y.png'/>",
        "<path onload='alert(1)'/>",
        "<use href='http://x/y.svg#z'/>",
        "<g style='fill: url(http://x/y.svg#z)'/>",
        "<a href='javascript:alert(1)'><text>x</text></a>",
        "<style>@import 'http://x/y.css';</style>",
        "<image xlink:href='data:image/svg+xml;base64,aHR0cA=='/>",
    ],
)
def test_of_an_svg_only_shapes_and_text_are_kept(hostile):
    inline = svg.inline(PICTURE.replace("</svg>", f"{hostile}</svg>"), "one", "a picture")
    assert not re.search(r"script|iframe|http|alert|import|image", inline)


def test_pixels_that_are_in_the_file_are_kept():
    pixels = "data:image/png;base64,iVBORw0KGgo="
    inline = svg.inline(
        PICTURE.replace("</svg>", f'<image xlink:href="{pixels}" width="9.123" onload="x()"/></svg>'), "one", "a"
    )
    assert f'href="{pixels}"' in inline and 'width="9.1"' in inline and "onload" not in inline


def row(verdict, **more):
    values = dict(
        claim="A is better than B", difference=-0.5, low=-0.8, high=-0.2, n=6, n_other=16, margin=0.3, verdict=verdict
    )
    return values | more


def test_a_sentence_has_verdict_claim_number_and_interval_whatever_the_verdict():
    found = "A is better than B (difference -0.50 points, 95% interval -0.80 to -0.20)."
    for verdict, said in (("supported", "Supported"), ("contradicted", "Contradicted"), ("not resolved", "Not resolved")):
        assert report._sentence(row(verdict)) == f"{said}: {found}"
    assert report._sentence(row("equivalent")) == f"Equivalent within 0.3 points: {found}"
    other = report._sentence(row("supported", views="the sign depends on the view"))
    assert other.endswith("; in another view the sign is the opposite).")
    few = report._sentence(row("not resolved", low=float("nan"), high=float("nan"), n=1))
    assert few == "Not resolved: A is better than B (difference -0.50 points, n = 1: too few for an interval)."
    failed = report._sentence(row("supported", failed=0, failed_other=2))
    assert failed.endswith("; 0 of 6 runs failed, against 2 of 16).")
    for seeds, said in ((2, "each of 2 seeds"), (1, "1 seed")):
        narrow = report._sentence(row("supported", hangs_on=seeds))
        assert narrow.endswith(f"; the verdict hangs on {said}).")
    for stays in (0, float("nan")):
        assert "hangs" not in report._sentence(row("supported", hangs_on=stays))
    alike = report._sentence(row("not resolved", low=float("nan"), high=float("nan")))
    assert alike == "Not resolved: A is better than B (difference -0.50 points, no interval)."


def test_an_interval_without_zero_of_a_question_that_is_not_resolved_has_the_reason_beside_it(results):
    found = report._sentence(row("not resolved", compared="exact ranks", p=0.041, p_holm=0.082))
    assert (
        "95% interval by ranks -0.80 to -0.20; p = 0.041, but 0.082 after Holm's correction for the topic's questions)" in found
    )
    for other in (row("not resolved", p=0.3, p_holm=0.6), row("supported", p=0.01, p_holm=0.02)):
        assert "Holm" not in report._sentence(other)
    text, page = page_of(results)
    answers = pd.read_csv(results / "tables" / "answers.csv")
    weak = answers[(answers.verdict == "not resolved") & (answers.low > 0)].iloc[0]
    assert weak.p < 0.05 < weak.p_holm
    assert f"{weak.low:+.2f} to {weak.high:+.2f}" in page.cells and f"{weak.p_holm:.3f}" in page.cells
    assert "of 11 that the code and the published numbers can test, 9 pass and 2 are not resolved." in text


def test_the_first_page_says_what_was_found_before_it_counts_and_the_main_question_first(results):
    text, _ = page_of(results)
    first = text[text.index('<section id="summary">') : text.index("<nav")]
    said = re.findall(r'<li><a href="#finding-([\w-]+)"><b>.*?</b></a> (.*?)</li>', first)
    answered = pd.read_csv(results / "tables" / "answers.csv").query("n > 0 and n_other > 0").topic
    assert [topic for topic, _ in said][0] == "ensemble" and {topic for topic, _ in said} == set(answered)
    sentence = r"(?:Not run: [^.]+|(?:Supported|Contradicted|Not resolved|Equivalent within [\d.]+ points): .*? points.*?\))\."
    shown = {topic: [re.fullmatch(sentence, each) for each in sentences.split("<br>")] for topic, sentences in said}
    assert all(all(each) and len(each) in (1, 2) for each in shown.values()), "each is on a line of its own"
    assert first.index("a short <i>collapse</i>") < first.index("in other <i>views</i>") < first.index("in another view")
    assert first.index("finding-ensemble") < first.index("<figure") < first.index("<table")


def test_the_first_page_says_what_two_data_sets_answer_alike(results):
    answers = pd.read_csv(results / "tables" / "answers.csv")
    text, _ = page_of(results)
    (said,) = re.findall(r"<li><a[^>]*><b>On another data set\..*?</li>", text, flags=re.S)
    claim = "The released collapse is better than the plain end of the linear decay"
    for row in answers[answers.claim == claim].itertuples():
        assert f"{row.verdict} on {row.data} ({row.difference:+.2f}, {row.low:+.2f} to {row.high:+.2f})" in said
    answers[answers.data == "digits"].to_csv(results / "tables" / "answers.csv", index=False)
    assert "On another data set" not in page_of(results)[0]


def test_the_questions_of_the_first_page_are_questions():
    asked = {report.sides(each) for each in questions.QUESTIONS}
    assert asked >= report.LEADING


def test_an_efficiency_that_was_not_measured_is_not_written(results):
    change(results, "scaling_measured", efficiency=float("nan"))
    text, _ = page_of(results)
    assert "nan%" not in text and "Too few steps were timed" in text


def test_an_efficiency_of_one_step_is_not_written(results):
    change(results, "scaling_measured", efficiency=99.0, n=1)
    text, _ = page_of(results)
    assert "at 99% of the images/s" not in text and "Too few steps were timed" in text


def test_an_efficiency_stands_with_the_range_of_its_steps(results):
    change(results, "scaling_measured", efficiency=96.0, seconds=1.0, low=0.8, high=1.2, n=9)
    assert (
        "at 96% of the images/s per rank of one rank alone (n = 9 steps; 80 to 120% at their 5 and 95% points)"
        in (page_of(results)[0])
    )


def test_the_page_names_the_networks(results):
    text, page = page_of(results)
    assert "The network is resnet11, but resnet38 in one deep model" in text
    assert "resnet38" in page.cells


def test_every_column_of_the_page_and_every_topic_has_a_name():
    assert set(names.TOPICS) == set(questions.TOPICS)
    assert sorted(topic for asked in profiles.NOTEBOOKS.values() for topic in asked) == sorted(questions.TOPICS)
    assert set(names.LOOKS) >= {"supported", "contradicted", "equivalent", "not resolved"}


def test_the_page_shows_figures_that_are_made():
    """One whose name is misspelt would be missing without a word, as one is that was not made yet."""
    named = re.findall(r'figure\("([\w-]+)",', (ROOT / "repro" / "paper" / "report.html.j2").read_text())
    others = {"bench-apparent_size", "scaling", "scaling_step"}  # by make bench-size and 11-scaling
    others |= {"ensemble_costs", "ensemble_paths"}  # by 14-averages-and-cycles
    saved = [source for path in (ROOT / "notebooks").glob("1*.ipynb") for source in re.findall(r"\w+", path.read_text())]
    assert {"ensemble_costs", "ensemble_paths", "scaling", "scaling_step"} <= set(saved)
    assert len(named) > 6 and set(named) - others <= set(reproduce.names("figures"))


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make setup` installs it")
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if not chromium:
        pytest.skip("no Chromium on PATH: `make browser` installs it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1200])
def test_nothing_is_wider_than_the_window(results, browser, width):
    """Tables become lists and figures move within themselves; the page itself never moves sideways."""
    window = browser.new_page(viewport={"width": width, "height": 900})
    window.goto(report.write(results, "digits", "laptop").as_uri())
    assert window.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_at_most_twelve_printed_pages_are_before_the_appendix(results, browser):
    shutil.copytree(REFERENCE / "figures", results / "figures", dirs_exist_ok=True)
    window = browser.new_page()
    window.goto(report.write(results, "digits", "laptop").as_uri())
    whole = pages(window)
    window.evaluate("document.querySelectorAll('#appendix, #others, footer').forEach(part => part.remove())")
    assert 6 < pages(window) <= 12 < whole


def pages(window) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", window.pdf(prefer_css_page_size=True)))


def test_a_style_that_comes_again_is_a_class_unless_it_would_end_its_rule():
    styles = ["fill: red", "fill: red", "x} body {display: none", "x} body {display: none", "fill: blue"]
    shapes = "".join(f'<g><path d="M 0.123 0" style="{style}"/></g>' for style in styles)
    found = svg.inline(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">\n{shapes}\n</svg>', "a", "alt")
    assert "<style>.a-s0{fill: red}</style>" in found and found.count('class="a-s0"') == 2
    assert found.count('style="x} body {display: none"') == 2 and found.count('style="fill: blue"') == 1
    assert "<g" not in found and "\n" not in found
