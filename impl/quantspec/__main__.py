"""``python -m quantspec``."""

import sys

from .cli import main

sys.exit(main())
