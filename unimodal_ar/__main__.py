"""`python -m unimodal_ar COMMAND` is `unimodal-ar COMMAND`: for launchers that start modules."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
