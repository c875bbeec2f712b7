"""`bodyseg report` prints where the page lies, and refuses what is no run."""

from __future__ import annotations

from pipeline.cli.main import main
from tests.support.finished_run import documented_config, finished_run


def test_the_page_of_a_run_is_written_and_named(tmp_path, capsys):
    run = finished_run(tmp_path / "logs", documented_config())
    page = tmp_path / "run.html"
    assert main(["report", str(run.path), "--no_images", "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "This file holds no images" in page.read_text("utf-8")


def test_a_path_without_a_run_is_refused_and_nothing_is_written(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent"), "--output", str(tmp_path / "run.html")]) == 2
    assert capsys.readouterr().err.startswith(f"bodyseg: {tmp_path}/absent: expected a run folder")
    assert not (tmp_path / "run.html").exists()
