"""`python -m autodistil_search`."""

import sys

from autodistil_search.cli import main

sys.exit(main())
