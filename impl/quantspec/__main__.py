"""``python -m quantspec``."""

import sys

from quantspec.cli import main

sys.exit(main())
