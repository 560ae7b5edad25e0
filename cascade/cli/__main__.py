"""``python -m cascade.cli``."""

import sys

from cascade.cli import main

sys.exit(main())
