"""Put the page together: a policy that lets it fetch nothing, what the file holds, then runs and scores."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from pipeline.report_page.markup import data, text
from pipeline.report_page.run_sections import RunFacts, sections_after_scores, sections_before_scores
from pipeline.report_page.score_sections import Scores, score_sections, volumes_by_id


def page(runs: Sequence[RunFacts], scores: Sequence[Scores], title: str = "") -> str:
    """The whole page as HTML.

    Args:
        runs: in the order of their columns.
        scores: of each metrics.json.
        title: "" for the names of the runs.
    """
    title = title or ", ".join([run.name for run in runs] or [one.name for one in scores])
    css, *scripts = (_file(name) for name in ("page.css", "viewer.js", "page.js"))
    allowed = f"style-src {_hash(css)}; script-src {' '.join(map(_hash, scripts))}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    volumes = volumes_by_id(scores)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{text(title)}</title><style>{css}</style></head><body>",
            _holds(len(volumes), scores),
            f"<h1>{text(title)}</h1>",
            sections_before_scores(runs),
            *(score_sections(n, one) for n, one in enumerate(scores)),
            sections_after_scores(runs),
            *(data(name, content) for name, content in volumes.items()),
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def _file(name: str) -> str:
    return files("pipeline.report_page").joinpath(name).read_text("utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _holds(n_views: int, scores: Sequence[Scores]) -> str:
    n_cases = sum(len(one.document["cases"]) for one in scores)
    others = f"the names{' and scores' if n_cases else ''} of cases, settings and paths"
    if n_views:
        what = f"This file holds images of {n_views} case{'s' * (n_views > 1)}, and {others}: treat it as patient data."
        return f'<p class="holds">{what}</p>'
    return f'<p class="holds clean">This file holds no images; it holds {others}.</p>'
