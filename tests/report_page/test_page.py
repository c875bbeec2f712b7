"""The page says first what it holds, and shows runs and scores."""

from __future__ import annotations

from html.parser import HTMLParser

from pipeline.report_page.page import RunFacts, page
from tests.support.finished_run import documented_config
from tests.support.training_logs import a_log


class Page(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.words: list[str] = []
        self._tag = ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self._tag = tag

    def handle_data(self, data):
        if self._tag not in ("style", "script"):
            self.words.append(data.strip())
        if self._tag == "h2":
            self.headings.append(data)
        self._tag = ""


def run(name: str, **changes) -> RunFacts:
    config = {"system": {"platform": "Linux"}} | documented_config(**changes)
    return RunFacts(name, config, a_log(6), {"status": "failed", "reason": "disk <full>"})


def test_a_run_is_described_with_how_it_ended():
    found = Page(page([run("first")], []))
    assert found.headings == ["Runs", "Curves", "Data", "Time and machine", "How to repeat it"]
    assert "This file holds no images; it holds the names of cases, settings and paths." in found.words
    assert "failed: disk <full>" in found.words
    assert "20,458,391" in found.words
    assert "validation mIoU" in found.words


def test_of_several_runs_the_settings_that_differ_are_listed():
    found = Page(page([run("first"), run("second", **{"training.lr": 0.5})], []))
    assert "What differs between the runs" in found.headings
    place = found.words.index("training.lr")
    assert found.words[place + 2] == "0.5"
