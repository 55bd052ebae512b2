#!/usr/bin/env python
"""The command ``detkt eval`` in a clone that was not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detkt.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
