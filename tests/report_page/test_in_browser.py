"""The page of a run and its scores, opened in a real Chromium: one on PATH, or that of the variable CHROMIUM."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import write_files
from pipeline.evaluation.options import ScoringOptions
from pipeline.report_page.report import report
from pipeline.runs.run_folder import RunFolder
from pipeline.visualisation.class_colours import class_colours
from tests.support.browser import Browser, find_chromium
from tests.support.evaluation import AFFINE, blobs, save
from tests.support.finished_run import documented_config
from tests.support.page_script import volumes_of
from tests.support.training_logs import a_log

EVIL = "<img src=x onerror=alert(1)>\u202e"
NAMES = {"background": 0, "liver": 1, EVIL: 2}
SHOWN = EVIL.replace("\u202e", "\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of a run and of three cases with images; a structure has a name that would run a script."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for shift, case in enumerate("abc", start=1):
        label = blobs(shift, n_classes=3)
        save(label, root / "labels" / f"{case}.nii.gz")
        save(np.roll(label, shift, 1), root / "predictions" / f"{case}.nii.gz")
        image = save(rng.integers(0, 200, label.shape).astype(np.int16), root / "images" / f"{case}.nii.gz", AFFINE)
        classes = [{"value": value, "name": name} for name, value in NAMES.items()]
        record = {"case": case, "source": [str(image)], "classes": classes, "files": []}
        (root / "predictions" / f"{case}.json").write_text(json.dumps(record))
    run = RunFolder(root / "logs", "first")
    run.make_ready(keep=False)
    run.write_config(documented_config())
    run.write_log(a_log(6))
    scores = evaluate(root / "predictions", root / "labels", ScoringOptions(surface=None, workers=1), class_names=NAMES)
    write_files(scores, run.path / "evaluation" / "val")
    return report([run.path], root / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH, and CHROMIUM names none: the page is not opened in a browser")
    browser = Browser(program, tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, path):
    browser.resize(1280, 900)
    browser.open(path)
    return browser


def test_the_page_opens_and_complains_of_nothing(opened, path):
    assert opened.complaints() == []
    requests = [one["request"]["url"] for one in opened.found("Network.requestWillBeSent")]
    assert requests == [path.as_uri()]
    assert opened.run("document.body.firstElementChild.textContent").startswith("This file holds images of 3 cases")


def test_a_click_on_a_heading_sorts_the_table(opened):
    table = "document.querySelectorAll('table.sortable')[1]"
    column = f"Array.from({table}.tBodies[0].rows, (row) => Number(row.cells[2].textContent))"
    worst_first = opened.run(column)
    assert len(worst_first) == 3
    for expected in (sorted(worst_first), sorted(worst_first, reverse=True)):
        opened.click(f"{table}.tHead.rows[0].cells[2].firstChild")
        assert opened.run(column) == expected


def test_a_click_shows_the_scan_with_contours_and_keys_move_through_it(opened, path):
    """The picture has the structures' colours, and many greys."""
    assert opened.run("document.querySelectorAll('canvas').length") == 0
    opened.click("document.querySelector('.case button')")
    opened.wait_for("document.querySelectorAll('canvas').length === 3")
    counts = opened.run(
        """(() => {
          const canvas = document.querySelector("canvas"), counts = {};
          const bytes = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          for (let n = 0; n < bytes.length; n += 4) {
            const colour = bytes.slice(n, n + 3).join(" ");
            counts[colour] = (counts[colour] ?? 0) + 1;
          }
          return counts;
        })()"""
    )
    (packed, *_) = volumes_of(path)
    for index, _, colour in packed["classes"]:
        assert colour == class_colours(list(NAMES))[index].tolist()
        assert counts[" ".join(map(str, colour))] > 20
    assert sum(len(set(colour.split())) == 1 for colour in counts) > 50
    slices = "document.querySelector('.plane label').textContent"
    before = opened.run(slices)
    opened.press("PageUp", 33)
    assert before == f"axial {packed['start'][2] + 1} of {packed['shape'][2]}"
    assert opened.run(slices) == f"axial {packed['start'][2] + 2} of {packed['shape'][2]}"
    assert opened.complaints() == []


def test_values_stand_where_the_mouse_rests(opened):
    x, y, width = opened.run(
        "(() => { const chart = document.querySelectorAll('.by-epoch svg')[1]; chart.scrollIntoView();"
        "const area = chart.getBoundingClientRect(); return [area.x, area.y, area.width]; })()"
    )
    opened.move_mouse(x + width * 0.98, y + 40)
    assert opened.run("document.querySelector('.tip').textContent") == "mIoU, epoch 5: 0.85714"


def test_foreign_names_are_text(opened):
    names = (
        "Array.from(document.querySelectorAll('table.sortable')[0].tBodies[0].rows, (row) => row.cells[0].textContent)"
    )
    assert opened.run(names) == ["liver", SHOWN]
    opened.click("document.querySelector('.case button')")
    opened.wait_for("document.querySelectorAll('canvas').length === 3")
    assert opened.run("Array.from(document.querySelectorAll('.case option'), (one) => one.textContent)")[2] == SHOWN
    assert opened.run("document.querySelectorAll('img').length") == 0


def test_the_page_can_reach_nobody(opened):
    """By a listener that hears no connection, whatever a script in the page tries."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        port = listener.getsockname()[1]
        opened.run(
            f"""(async () => {{
              const there = "http://127.0.0.1:{port}/";
              const element = (tag, name) => Object.assign(document.createElement(tag), {{ [name]: there }});
              const style = Object.assign(element("link", "href"), {{ rel: "stylesheet" }});
              document.body.append(element("img", "src"), element("script", "src"), element("iframe", "src"), style);
              navigator.sendBeacon(there, "x");
              try {{ new WebSocket("ws://127.0.0.1:{port}/"); }} catch (error) {{}}
              await fetch(there, {{ mode: "no-cors" }}).catch(() => null);
            }})()"""
        )
        with pytest.raises(TimeoutError):
            listener.accept()
    assert len(opened.complaints()) >= 6


def test_nothing_is_cut_off_in_a_narrow_window(opened):
    opened.resize(360, 800)
    opened.click("document.querySelector('.case button')")
    opened.wait_for("document.querySelectorAll('canvas').length === 3")
    assert opened.run("document.documentElement.scrollWidth") <= 360
    assert opened.run("Math.max(...Array.from(document.querySelectorAll('canvas'), (one) => one.clientWidth))") <= 330
