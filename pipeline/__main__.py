"""`python -m pipeline COMMAND …` is `bodyseg COMMAND …`."""

from __future__ import annotations

import sys

from pipeline.cli.main import main

sys.exit(main())
