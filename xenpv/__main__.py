"""`python -m xenpv` is the command `xenpv`."""

from __future__ import annotations

import sys

from xenpv.cli import main

sys.exit(main())
