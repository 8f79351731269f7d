"""The report's files: curves read from the figures, pictures that show something, a page on its own."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from axolotl_aot.quantiles import MARGIN_METRICS
from axolotl_aot.report.figures import (
    COLOURS,
    RUNS,
    comparison_figure,
    live_figure,
    log_ratios_figure,
    quantiles_figure,
    training_figure,
)
from axolotl_aot.report.page import write_report
from axolotl_aot.report.runs import Answers, Run
from axolotl_aot.report.statistics import report

EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">&amp;</td>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def make_run(name: str, paired: bool, seed: int) -> Run:
    rng = np.random.default_rng(seed)
    sides = []
    for size, shift in ((30, 1.0), (30 if paired else 20, -2.0)):
        reference = rng.normal(-10, 2, size)
        sides.append(Answers(reference + rng.normal(shift, 1, size), reference))
    return Run(name, paired, *sides)


def below_and_above(chosen: float, rejected: float, prefix: str = "") -> dict[str, float]:
    """Shares of answers on the wrong side of the base model, and by how much."""
    return {
        f"{prefix}dominance/chosen_below_base_rate": chosen,
        f"{prefix}dominance/chosen_below_base": 3 * chosen,
        f"{prefix}dominance/rejected_above_base_rate": rejected,
        f"{prefix}dominance/rejected_above_base": 2 * rejected,
    }


HISTORY = [
    {"step": 1, "loss": 0.7, "dominance/violation": 0.3, **{m: 0.1 * p for p, m in MARGIN_METRICS.items()}}
    | below_and_above(0.0, 0.1),
    {"step": 2, "loss": 0.5, "dominance/violation": 0.1, **{m: 0.2 * p for p, m in MARGIN_METRICS.items()}}
    | below_and_above(0.4, 0.2),
    {"step": 2, "eval_loss": 0.6, "eval_dominance/violation": 0.2, f"eval_{MARGIN_METRICS[50]}": 7.0}
    | below_and_above(0.5, 0.3, "eval_"),
]


def make_report(names=("aot",), paired=True, **kwargs) -> dict:
    runs = [make_run(name, paired, seed) for seed, name in enumerate(names)]
    source = {"kind": "evaluation set", "description": "the evaluation set"}
    return report(runs, source=source, settings={"rl": "aot"}, **kwargs)


@pytest.fixture(scope="module")
def pairs() -> dict:
    return make_report(history=HISTORY)


@pytest.fixture(scope="module")
def four() -> dict:
    return make_report(("aot", "aot_unpaired", "dpo", "kto"))


def curves(axis) -> dict[str, tuple[list[float], str, str]]:
    """By label: values, colour and dashes of an axis's lines that have as many points as the curves."""
    return {
        line.get_label(): (
            np.asarray(line.get_ydata(), dtype=float).tolist(),
            matplotlib.colors.to_hex(line.get_color()).upper(),
            line.get_linestyle(),
        )
        for line in axis.get_lines()
        if len(line.get_xdata()) == 100
    }


def bands(axis) -> list[np.ndarray]:
    """Low and high ends of the filled bands, shape (2, levels), in the order drawn."""
    found = []
    for collection in axis.collections:
        y = collection.get_paths()[0].vertices[:, 1]
        levels = (len(y) - 3) // 2
        found.append(np.stack([y[1 : levels + 1], y[levels + 2 : -1][::-1]]))
    return found


def assert_readable(figure) -> None:
    for axis in figure.axes:
        assert axis.get_xlabel() and axis.get_title()
        assert axis.get_ylabel() or not axis.get_subplotspec().is_first_col()
        labels = axis.get_legend_handles_labels()[1]
        assert len(labels) == len(set(labels)) >= 1
    assert any("nats" in axis.get_ylabel() for axis in figure.axes)


def assert_curve(axis, label: str, curve: dict, colour: str, band: int | None = None) -> None:
    values, shade, _ = curves(axis)[label]
    assert values == curve["quantiles"]
    assert shade == colour.upper()
    if band is not None:
        assert np.allclose(bands(axis)[band], curve["band"])


def test_quantiles_before_and_after(pairs):
    compared = pairs["runs"]["aot"]["comparisons"]
    figure = quantiles_figure(pairs, "aot")
    rewards, before, after = figure.axes
    for axis, state in (
        (rewards, compared["rewards"]["after"]),
        (before, compared["log_probabilities"]["before"]),
        (after, compared["log_probabilities"]["after"]),
    ):
        assert set(curves(axis)) == {"chosen", "rejected"}
        assert_curve(axis, "chosen", state["curves"]["upper"], COLOURS["chosen"], band=0)
        assert_curve(axis, "rejected", state["curves"]["lower"], COLOURS["rejected"], band=1)
        assert "nats" in axis.get_ylabel()
    assert before.get_ylim() == after.get_ylim()
    assert_readable(figure)


@pytest.mark.parametrize("paired", [True, False])
def test_log_ratios_show_both_labels_apart(paired):
    numbers = make_report(paired=paired)
    compared = numbers["runs"]["aot"]["comparisons"]
    figure = log_ratios_figure(numbers, "aot")
    assert len(figure.axes) == 2 + paired
    states = compared["log_probabilities"]
    for axis, side, end in zip(figure.axes, ("chosen", "rejected"), ("upper", "lower"), strict=False):
        assert set(curves(axis)) == {"policy", "reference"}
        assert_curve(axis, "reference", states["before"]["curves"][end], COLOURS[side], band=0)
        assert_curve(axis, "policy", states["after"]["curves"][end], COLOURS[side], band=1)
        assert curves(axis)["policy"][2] != curves(axis)["reference"][2]
    if paired:
        ratios = compared["log_ratios"]["after"]["curves"]
        assert_curve(figure.axes[2], "policy", ratios["upper"], curves(figure.axes[2])["policy"][1])
        assert_curve(figure.axes[2], "reference", ratios["lower"], COLOURS["reference"])
    assert_readable(figure)


def test_the_course_of_training(pairs):
    figure = training_figure(pairs)
    loss, violation, margin, wrong = figure.axes
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert lines["training"].get_xydata().tolist() == [[1, 0.7], [2, 0.5]]
    assert lines["evaluation"].get_xydata().tolist() == [[2, 0.6]]
    lines = {line.get_label(): line for line in violation.get_lines()}
    assert lines["training"].get_xydata().tolist() == [[1, 0.3], [2, 0.1]]
    assert lines["evaluation"].get_xydata().tolist() == [[2, 0.2]]
    lines = {line.get_label(): line for line in margin.get_lines()}
    assert lines["median"].get_xydata().tolist() == [[1, 5], [2, 10]]
    assert lines["median, evaluation"].get_xydata().tolist() == [[2, 7]]
    lines = {line.get_label(): line for line in wrong.get_lines()}
    assert lines["chosen, less likely"].get_xydata().tolist() == [[1, 0], [2, 0.4]]
    assert lines["rejected, more likely"].get_xydata().tolist() == [[1, 0.1], [2, 0.2]]
    assert lines["chosen, evaluation"].get_xydata().tolist() == [[2, 0.5]]
    assert lines["rejected, evaluation"].get_xydata().tolist() == [[2, 0.3]]
    for label, line in lines.items():
        colour = COLOURS[label.partition(",")[0]]
        assert matplotlib.colors.to_hex(line.get_color()).upper() == colour
    outer, inner = bands(margin)
    assert np.allclose(outer, [[0.5, 1], [9.5, 19]]) and np.allclose(inner, [[2.5, 5], [7.5, 15]])
    assert_readable(figure)


def test_four_runs_side_by_side(four):
    figure = comparison_figure(four)
    runs = four["runs"]
    *side_by_side, margins, ratios = figure.axes
    assert len(side_by_side) == 4
    for axis, (name, run) in zip(side_by_side, runs.items(), strict=True):
        state = run["comparisons"]["rewards"]["after"]
        assert name in axis.get_title()
        assert_curve(axis, "chosen", state["curves"]["upper"], COLOURS["chosen"], band=0)
        assert_curve(axis, "rejected", state["curves"]["lower"], COLOURS["rejected"], band=1)
        assert axis.get_ylim() == side_by_side[0].get_ylim()
    assert list(curves(margins)) == list(runs)
    for name, run in runs.items():
        compared = run["comparisons"]
        ends = compared["rewards"]["after"]["curves"]
        gap = np.subtract(ends["upper"]["quantiles"], ends["lower"]["quantiles"])
        values, colour, dashes = curves(margins)[name]
        assert np.allclose(values, gap)
        assert_curve(ratios, name, compared["log_ratios"]["after"]["curves"]["upper"], colour)
        assert curves(ratios)[name][2] == dashes
    looks = [curves(ratios)[name][1:] for name in (*runs, "reference")]
    assert len(set(looks)) == 5 and len({colour for colour, _ in looks}) == 5
    assert not {colour for colour, _ in looks} & {COLOURS["chosen"], COLOURS["rejected"]}
    assert_readable(figure)


def test_nothing_overlaps_with_four_runs(four):
    figure = comparison_figure(four)
    figure.draw_without_rendering()
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    for i, box in enumerate(boxes):
        for other in boxes[i + 1 :]:
            overlap = (
                min(box.x1, other.x1) - max(box.x0, other.x0),
                min(box.y1, other.y1) - max(box.y0, other.y0),
            )
            assert min(overlap) <= 1, (box, other)


def test_labels_without_pairs_have_no_ratio():
    numbers = make_report(("aot_unpaired", "kto"), paired=False)
    figure = comparison_figure(numbers)
    assert [axis.get_title() for axis in figure.axes] == [
        "Rewards, aot_unpaired",
        "Rewards, kto",
        "Margin between the quantiles of the rewards",
    ]


def test_the_figure_of_an_evaluation():
    run = make_run("aot", True, 0)
    rewards, ratios = live_figure(run, step=7).axes
    assert "step 7" in rewards.get_title()
    index = np.ceil((np.arange(100) + 0.5) / 100 * 30).astype(int) - 1
    assert curves(rewards)["chosen"][0] == np.sort(run.chosen.rewards)[index].tolist()
    assert curves(rewards)["rejected"][0] == np.sort(run.rejected.rewards)[index].tolist()
    assert set(curves(ratios)) == {"policy", "reference"}


# --- Files --------------------------------------------------------------------------------------


def assert_shows_something(path: Path) -> None:
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 100
    inked = (pixels != 255).any(axis=1).mean()
    assert 0.02 < inked < 0.6


class Page(HTMLParser):
    """Tags, their attributes, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def evil_report() -> dict:
    numbers = make_report((EVIL,), history=HISTORY)
    answers = [{"reward": -1.0, "prompt": EVIL, "completion": EVIL}]
    numbers["examples"] = {EVIL: {"chosen": answers, "rejected": answers}}
    numbers["settings"] = {"base_model": EVIL}
    numbers["source"]["description"] = EVIL
    return numbers


def test_files_of_one_run(pairs, tmp_path):
    page = write_report(tmp_path / "new" / "folder", pairs)
    files = {path.name for path in page.parent.iterdir()}
    assert files == {"report.html", "report.json", "quantiles.png", "log_ratios.png", "training.png"}
    assert json.loads((page.parent / "report.json").read_text()) == pairs
    for path in page.parent.glob("*.png"):
        assert_shows_something(path)


def test_a_report_replaces_an_earlier_one(pairs, four, tmp_path):
    write_report(tmp_path, pairs)
    write_report(tmp_path, four)
    assert (tmp_path / "comparison.png").exists() and not (tmp_path / "training.png").exists()
    assert json.loads((tmp_path / "report.json").read_text())["runs"].keys() == four["runs"].keys()


def test_numbers_survive_a_plot_that_cannot_be_written(pairs, tmp_path):
    (tmp_path / "quantiles.png").mkdir()
    with pytest.raises(OSError):
        write_report(tmp_path, pairs)
    assert json.loads((tmp_path / "report.json").read_text()) == pairs


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path):
    html = write_report(tmp_path, evil_report()).read_text()
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "link" not in tags and "iframe" not in tags
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # where it stands: title, heading, source, verdict, table headings, settings, four cells of examples, ...
    assert page.text.count(EVIL) >= 8


def test_whoever_does_not_see_the_plots_is_told_what_they_show(four, pairs, tmp_path):
    page = Page(write_report(tmp_path / "pairs", pairs).read_text())
    quantile_curves, log_ratios, training = (
        attributes["alt"] for tag, attributes in page.tags if tag == "img"
    )
    compared = pairs["runs"]["aot"]["comparisons"]
    for state in (compared["rewards"]["after"], *compared["log_probabilities"].values()):
        assert state["first_order"]["verdict"] in quantile_curves
    assert pairs["runs"]["aot"]["changes"]["verdict"] in log_ratios
    assert all(words in training for words in pairs["course"])
    page = Page(write_report(tmp_path / "four", four).read_text())
    comparison = next(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    for name, run in four["runs"].items():
        verdict = run["comparisons"]["rewards"]["after"]["first_order"]["verdict"]
        assert f"{name}: {verdict}" in comparison


def test_headings_tables_and_what_scrolls_are_told_apart(pairs, tmp_path):
    page = Page(write_report(tmp_path, pairs).read_text())
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    headings = [tag for tag in tags if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}
    assert all(attributes.get("scope") == "col" for tag, attributes in page.tags if tag == "th")
    scrolls = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(scrolls) == tags.count("table") + tags.count("img")
    assert all(part["tabindex"] == "0" and part["aria-label"] for part in scrolls)


def test_the_page_says_what_the_numbers_say(pairs, tmp_path):
    text = " ".join(Page(write_report(tmp_path, pairs).read_text()).text.split())
    run = pairs["runs"]["aot"]
    for states in run["comparisons"].values():
        for state in states.values():
            assert state["first_order"]["verdict"] in text
            assert f"{state['wasserstein']['value']:.3g} nats" in text
    assert run["changes"]["verdict"] in text
    assert text.count(run["changes"]["base_model"]) == 1
    assert len(pairs["course"]) == 2
    for words in pairs["course"]:
        assert words in text
    assert f"{run['changes']['chosen']['change']['value']:.3g}" in text
    assert "the evaluation set" in text
    assert "before training the policy is the reference" in text


def seen_in_a_browser(page: Path, width: int = 1150, *flags: str) -> dict:
    """What Chromium makes of a page: title, widths of images, texts, whether it is wider than the window.

    In a frame, as its windows have a least width.
    """
    question = (
        "<script>addEventListener('load', () => { parent.postMessage("
        "{title: document.title, images: [...document.images].map(i => i.naturalWidth), "
        "width: innerWidth, wide: document.documentElement.scrollWidth > innerWidth, "
        "background: getComputedStyle(document.body).backgroundColor, "
        "cells: [...document.querySelectorAll('pre')].map(e => e.textContent)}, '*') })</script>"
    )
    asked = page.with_name("asked.html")
    asked.write_text(page.read_text("utf-8") + question, "utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(
        "<!doctype html><meta name='color-scheme' content='light dark'><script>addEventListener('message', "
        "event => { document.documentElement.dataset.seen = JSON.stringify(event.data) })</script>"
        f"<iframe src='{asked.name}' style='width: {width}px; height: 800px; border: 0'></iframe>",
        "utf-8",
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        f"--user-data-dir={page.parent / 'profile'}",
        "--window-size=1500,900",
        "--virtual-time-budget=10000",  # until the frame has answered
        *flags,
        "--dump-dom",
        frame.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (root,) = [attributes for tag, attributes in Page(dom).tags if tag == "html"]
    return json.loads(root["data-seen"])


@needs_chromium
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page_without_a_network(width, tmp_path):
    seen = seen_in_a_browser(write_report(tmp_path / "report", evil_report()), width)
    assert seen["title"] == f"Dominance report: {EVIL}"
    assert [pixels > 1000 for pixels in seen["images"]] == [True] * 3
    assert seen["width"] == width and not seen["wide"]


@needs_chromium
@pytest.mark.parametrize("numbers", [make_report(("aot", "dpo", "kto")), make_report(paired=False)])
def test_comparisons_and_unpaired_answers_fit_a_narrow_window(numbers, tmp_path):
    assert not seen_in_a_browser(write_report(tmp_path / "report", numbers), 400)["wide"]


# --- Colours ------------------------------------------------------------------------------------


DARK = "@media screen and (prefers-color-scheme: dark)"


def colours(html: str, scheme: str) -> dict[str, str]:
    """The page's CSS variables that are colours: of the light scheme, or with the dark one's over them."""
    light, dark = html.split(DARK)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))
    return found | (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", dark)) if scheme == "dark" else {})


def contrast(one: tuple[float, ...] | str, other: tuple[float, ...] | str) -> float:
    """Of two sRGB colours, from 1 to 21, as WCAG 2.2 defines it."""

    def luminance(colour) -> float:
        parts = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_wcag_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known near miss


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(scheme, pairs, tmp_path):
    found = colours(write_report(tmp_path, pairs).read_text(), scheme)
    for text in ("text", "quiet"):
        for ground in ("background", "panel"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for mark in ("holds", "fails"):  # WCAG asks less of what is no text
        assert contrast(found[mark], found["background"]) >= 3, mark


def test_every_colour_of_the_page_is_a_variable(pairs, tmp_path):
    html = write_report(tmp_path, pairs).read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    named = re.findall(r"var\(--([a-z-]+)\)", style)
    assert set(named) - {"width"} == set(colours(html, "light")) == set(colours(html, "dark"))
    assert len(re.findall("#[0-9a-f]{3,6}", style)) == 2 * len(colours(html, "light"))


def shown_dark(colour: str) -> tuple[float, ...]:
    """A plot's colour behind the dark page's filter, by the matrices of the CSS Filter Effects Module."""
    inverted = 0.93 - 0.86 * np.array(matplotlib.colors.to_rgb(colour))
    weights = np.array([0.213, 0.715, 0.072])  # of luminance; half a turn keeps it
    return tuple(np.clip(2 * weights @ inverted - inverted, 0, 1))


def test_plots_on_the_dark_page(pairs, tmp_path):
    html = write_report(tmp_path, pairs).read_text()
    assert "img { filter: invert(0.93) hue-rotate(180deg); }" in html
    ground = colours(html, "dark")["background"]
    assert np.allclose(shown_dark("#ffffff"), matplotlib.colors.to_rgb(ground), atol=1 / 255)
    for colour in (*COLOURS.values(), *(colour for colour, _ in RUNS)):
        assert contrast(shown_dark(colour), ground) >= 3, colour


@needs_chromium
@pytest.mark.parametrize(("scheme", "setting"), [("dark", 0), ("light", 1)])
def test_the_page_follows_the_readers_scheme(scheme, setting, pairs, tmp_path):
    page = write_report(tmp_path / "report", pairs)
    seen = seen_in_a_browser(page, 1150, f"--blink-settings=preferredColorScheme={setting}")
    red, green, blue = (
        round(255 * part)
        for part in matplotlib.colors.to_rgb(colours(page.read_text(), scheme)["background"])
    )
    assert seen["background"] == f"rgb({red}, {green}, {blue})"
