"""Run functions of the report page's scripts in node, where there is one, without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

SCRIPTS = [str(ROOT / "pipeline" / "report_page" / name) for name in ("viewer.js", "page.js")]


def run_script(body: str, **values: Any) -> Any:
    """What `body` returns, the inside of an async function that has the values, and the scripts as `page`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's script is not executed")
    program = (
        f"const page = Object.assign({{}}, ...{json.dumps(SCRIPTS)}.map(require));"
        "let text = ''; process.stdin.on('data', (part) => (text += part)).on('end', async () => {"
        f"const {{ {', '.join(values)} }} = JSON.parse(text);"
        f"console.log(JSON.stringify(await (async () => {{ {body} }})())); }});"
    )
    done = subprocess.run(
        [node, "-e", program], input=json.dumps(values), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def volumes_of(path: Path) -> list[dict[str, Any]]:
    """The cases that a page holds."""
    parts = path.read_text("utf-8").split('<script type="application/json" id="volumes-')[1:]
    return [json.loads(part.split(">", 1)[1].split("</script>")[0]) for part in parts]
