"""`python -m pipeline VERB …` is `bodyseg VERB …`."""

from __future__ import annotations

import sys

from pipeline.cli.main import main

sys.exit(main())
