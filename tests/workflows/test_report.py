"""The report: complete, self-contained, safe against what names and causes hold; samples and figures tell the truth."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cubeloom.errors import ConfigError
from cubeloom.pipeline.quicklook import write_quicklooks
from cubeloom.pipeline.scene import QUALITY_FLAGS
from cubeloom.workflows.figures import gaps, line, picture_uri, spectra_uri
from cubeloom.workflows.report import RunSummary, SceneSummary, amount, duration, render_report
from cubeloom.workflows.samples import BandAxis, Noise, band_axis, class_shares, sample_spectra


class Page(HTMLParser):
    """Tags that stay open, ids, links, pictures and text of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.hrefs, self.sources, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.hrefs += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def run(*scenes: SceneSummary) -> RunSummary:
    return RunSummary("20240601T103000Z", "enmap_l2a", "name: enmap_l2a\nsteps:\n  - mask\n", scenes, 42.0, "host")


def read(tmp_path: Path, *scenes: SceneSummary) -> tuple[Page, str]:
    path = render_report(run(*scenes), tmp_path / "runs" / "1" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return page, text


@pytest.fixture(scope="module")
def drawn(make_scene, tmp_path_factory):
    """A published scene with all that is drawn of one, wherever its item is."""
    scene = make_scene(bands=60)
    cube = scene.reflectance
    codes = np.ones(cube.shape[1:], np.uint8)
    codes[:100] = 2
    attrs = {"flag_values": [1, 2, 3], "flag_meanings": "water low_vegetation roof"}
    scene = scene.assign(denoised=(cube.dims, cube.values, {"units": "1"}), classes=(("y", "x"), codes, attrs))
    scene = scene.assign_attrs(subject="denoised")
    noise = Noise(band_axis(scene), np.full(60, 0.01), np.full(60, 0.001))
    return SceneSummary(
        "SCENE_1",
        "published",
        title="EnMAP L2A",
        seconds={"open": 0.2, "blocks": 2.0},
        blocks=6,
        pictures=write_quicklooks(scene, tmp_path_factory.mktemp("pictures") / "made"),
        spectra=sample_spectra(scene),
        noise=noise,
        classes=class_shares(scene),
        attribution="(c) DLR",
    )


@pytest.fixture
def published(drawn, tmp_path):
    return replace(drawn, item=tmp_path / "scenes" / "SCENE_1" / "enmap_l2a.json")


def test_a_page_needs_nothing_but_itself(tmp_path, published):
    page, text = read(tmp_path, published)
    assert len(page.sources) == 4 + 1 + 2  # composites, class map, two plots; one scene has no index
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", text)
    assert "url(" not in text
    assert "<script" not in text
    assert page.hrefs == ["../../scenes/SCENE_1/enmap_l2a.json"]


def test_a_page_says_what_became_of_every_scene_failures_first(tmp_path, published):
    failed = SceneSummary("BAD", "failed", cause="x.TIF: the file is cut short", advice="Fetch it again.")
    invalid = SceneSummary("OTHER", "invalid", cause="takes level L2A, the scene is L1B")
    unchanged = SceneSummary("OLD", "unchanged")
    page, _ = read(tmp_path, published, unchanged, invalid, failed)
    text = " ".join(" ".join(page.text).split())
    assert page.ids == ["scene-1", "scene-2", "scene-3", "scene-4"]
    assert set(page.hrefs) >= {f"#{anchor}" for anchor in page.ids}
    order = [text.index(part) for part in ("the file is cut short", "takes level L2A", "All scenes", "Products")]
    assert order == sorted(order)
    for part in (
        "Fetch it again.",
        "1 June 2024, 10:30 UTC",
        "low vegetation",
        "name: enmap_l2a",
        "(c) DLR",
        "4 scenes in 42 s",
    ):
        assert part in text, part


def test_of_many_scenes_every_one_has_its_line_and_only_the_new_ones_a_section(tmp_path):
    item = tmp_path / "scenes" / "OLD" / "flow.json"
    old = [SceneSummary(f"OLD_{number}", "unchanged", item=item) for number in range(50)]
    aborted = SceneSummary("LATE", "aborted", cause="the run was stopped before it began")
    failed = SceneSummary("BAD", "failed", cause="cut short", peak_mib=812.0, seconds={"open": 3.0})
    new = SceneSummary("NEW", "published", seconds={"open": 7.0})
    page, _ = read(tmp_path, *old, aborted, failed, new)
    text = " ".join(" ".join(page.text).split())
    assert len(page.ids) == 2, "the failed one and the new one"
    assert all(f"OLD_{number}" in text for number in range(50))
    assert "LATE the run was stopped before it began not reached" in text
    assert "BAD cut short failed 3.0 s 851 MB" in text
    assert page.hrefs.count("../../scenes/OLD/flow.json") == 50


def test_names_and_causes_cannot_add_markup(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    scene = SceneSummary(evil, "failed", cause=evil, title=evil, attribution=evil)
    page, text = read(tmp_path, scene, replace(scene, state="published", steps=(evil,), warnings=(evil,)))
    assert "<script" not in text
    assert "<img src=x" not in text
    assert any("alert(1)" in part for part in page.text)


def test_hundreds_of_scenes_stay_light(tmp_path, published):
    many = [replace(published, item_id=f"SCENE_{number}") for number in range(100)]
    page, text = read(tmp_path, *many)
    assert len(page.ids) == 100
    assert "Spectra of sample pixels" not in text
    assert len(text) < 100 * 60_000


def test_the_same_run_gives_the_same_page(tmp_path, published):
    assert read(tmp_path, published)[1] == read(tmp_path, published)[1]


def test_a_run_without_scenes_and_an_unknown_state(tmp_path):
    page, _ = read(tmp_path)
    assert "0 scenes in 42 s" in " ".join(page.text)
    with pytest.raises(ConfigError, match="state 'done'"):
        read(tmp_path, SceneSummary("A", "done"))
    assert [path.name for path in (tmp_path / "runs" / "1").iterdir()] == ["report.html"]


def test_durations_and_amounts_in_words():
    assert [duration(s) for s in (0.04, 9.94, 59.4, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [amount(n) for n in (0, 999, 1500, 312e6, 2.5e9, 4e12)] == [
        "0 B", "999 B", "1.5 kB", "312 MB", "2.5 GB", "4000 GB",
    ]  # fmt: skip


def landscape(make_scene):
    """Stripes of water, vegetation, soil and built-up with textbook spectra, and the rows where each begins."""
    scene = make_scene(height=200, width=50, bands=120, background=0)
    wavelength = scene.wavelength.values
    red_edge = 1 / (1 + np.exp(-(wavelength - 715) / 12))
    water = 0.06 * np.exp(-(((wavelength - 480) / 200) ** 2)) + 0.002
    plant = 0.03 + 0.42 * red_edge * np.exp(-np.maximum(wavelength - 1250, 0) / 500)
    soil = 0.05 + 0.3 * (1 - np.exp(-(wavelength - 400) / 700))
    built = 0.16 + 0.08 * (1 - np.exp(-(wavelength - 400) / 900))
    cube = scene.reflectance.values
    for number, spectrum in enumerate((water, plant, soil, built)):
        cube[:, 50 * number : 50 * (number + 1)] = spectrum[:, None, None]
    cube += np.random.default_rng(0).normal(0, 0.002, cube.shape).astype(np.float32)
    return scene, {"water": 0, "vegetation": 50, "bare soil": 100, "built-up": 150}


def test_sample_pixels_are_what_they_are_called(make_scene):
    scene, starts = landscape(make_scene)
    spectra = sample_spectra(scene)
    assert [sample.label for sample in spectra.samples] == ["vegetation", "water", "bare soil", "built-up"]
    for sample in spectra.samples:
        start = starts[sample.label]
        assert start <= sample.row < start + 50, sample.label
        assert np.array_equal(sample.before, scene.reflectance.values[:, sample.row, sample.col], equal_nan=True)
        assert sample.after is None
    again = sample_spectra(scene)
    assert [(s.row, s.col) for s in again.samples] == [(s.row, s.col) for s in spectra.samples]


def test_snow_is_not_taken_for_water(make_scene):
    scene, starts = landscape(make_scene)
    snowy = scene.copy(deep=True)
    wavelength = scene.wavelength.values
    snow = np.interp(wavelength, [400, 850, 1050, 1500, 2500], [0.95, 0.85, 0.6, 0.06, 0.1])
    snowy.reflectance.values[:, :20] = snow[:, None, None]
    assert "snow" not in {sample.label for sample in sample_spectra(snowy).samples}, "thin clouds look like it"
    snowy.quality.values[:20] |= QUALITY_FLAGS["snow"]
    labels = {sample.label: sample for sample in sample_spectra(snowy).samples}
    assert labels["snow"].row < 20
    assert starts["water"] <= labels["water"].row < starts["water"] + 50


def test_pixels_are_chosen_in_the_overview_and_read_in_the_scene(make_scene):
    scene, starts = landscape(make_scene)
    overview = scene.isel(y=slice(1, None, 4), x=slice(1, None, 4))
    spectra = sample_spectra(scene, overview=overview)
    assert len(spectra.samples) == 4
    for sample in spectra.samples:
        assert starts[sample.label] <= sample.row < starts[sample.label] + 50
        assert sample.row % 4 == 2


def test_samples_are_valid_distinct_pixels_also_of_a_single_detector(make_scene):
    scene = make_scene(bands=60)
    scene = scene.assign(valid=(("y", "x"), np.arange(300)[:, None] + np.zeros(280, int) > 150))
    for part in (scene, scene.isel(band=scene.wavelength.values > 1500)):
        spectra = sample_spectra(part, n=4)
        pixels = {(sample.row, sample.col) for sample in spectra.samples}
        assert len(pixels) == len(spectra.samples) == 4
        assert all(row > 150 for row, _ in pixels)
        assert all(np.isfinite(sample.before[part.good.values]).all() for sample in spectra.samples)
    empty = scene.copy(deep=True)
    empty.reflectance.values[:] = np.nan
    assert sample_spectra(empty).samples == ()


def test_shares_add_up_and_count_the_pixels(make_scene):
    scene = make_scene(height=10, width=10)
    codes = np.zeros((10, 10), np.uint8)
    codes[:2], codes[2:8] = 1, 3
    scene = scene.assign(classes=(("y", "x"), codes, {"flag_values": [1, 2, 3], "flag_meanings": "a b c"}))
    shares = class_shares(scene)
    assert [(share.name, share.share) for share in shares] == [("c", 0.75), ("a", 0.25)]


def axis(good, preferred=None, wavelength=None) -> BandAxis:
    good = np.array(good, bool)
    numbers = np.arange(len(good)) * 10.0 + 400 if wavelength is None else np.array(wavelength, float)
    return BandAxis(numbers, good, np.ones(len(good), bool) if preferred is None else np.array(preferred, bool))


def test_lines_break_at_bad_bands_and_wide_gaps_but_not_at_the_other_detector():
    assert gaps(axis([1, 1, 0, 1, 1])) == [(410.0, 430.0)]
    assert gaps(axis([1, 1, 1, 1], wavelength=[400, 410, 500, 510])) == [(410.0, 500.0)]
    assert gaps(axis([1, 1, 1, 1, 1], preferred=[1, 1, 0, 1, 1])) == []
    assert gaps(axis([1, 1, 0, 1, 1], preferred=[1, 1, 0, 1, 1])) == []
    bands = axis([1, 1, 0, 1, 1])
    x, y = line(bands, np.arange(5.0))
    assert np.array_equal(x, [400, 410, np.nan, 430, 440], equal_nan=True)
    assert np.array_equal(y, [0, 1, np.nan, 3, 4], equal_nan=True)
    none = axis([0, 0])
    assert gaps(none) == []
    assert line(none, np.zeros(2))[0].size == 0


def test_figures_are_what_their_type_says(published):
    kind, data = spectra_uri(published.spectra).removeprefix("data:").split(";base64,")
    assert kind == "image/svg+xml"
    svg = base64.b64decode(data).decode()
    assert svg.count("vegetation") + svg.count("bright") >= 1
    assert "<dc:date>" not in svg
    uri = picture_uri(published.pictures["truecolour"], 100)
    assert base64.b64decode(uri.partition(",")[2])[8:12] == b"WEBP"
