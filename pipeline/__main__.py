"""`python -m pipeline VERB …` is `bodyseg VERB …`."""

import sys

from pipeline.cli import main

sys.exit(main())
