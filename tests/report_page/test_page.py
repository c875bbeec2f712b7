"""The page says first what it holds, in one document."""

from __future__ import annotations

import re

from pipeline.report_page.page import page
from pipeline.report_page.run_sections import RunFacts
from tests.support.finished_run import documented_config
from tests.support.training_logs import a_log


def test_the_page_begins_with_what_it_holds_and_its_title():
    run = RunFacts("first", documented_config(), a_log(6), {}, "logs/first")
    content = page([run], [], "study <1>")
    body = content.split("<body>")[1]
    first_words = re.findall(r">([^<]+)<", body)[0]
    assert first_words == "This file holds no images; it holds the names of cases, settings and paths."
    assert "<h1>study &lt;1&gt;</h1>" in body
    assert "<h1>first</h1>" in page([run], [])
    assert re.findall("<h2>(.*?)</h2>", body) == [
        "Runs",
        "Curves",
        "Data",
        "Time, memory and machine",
        "How to repeat it",
    ]
