"""``python -m scalesim``: the command ``scalesim``, where scripts are not on the path."""

import sys

from scalesim.cli import main

sys.exit(main())
