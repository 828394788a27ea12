"""`python -m autodistil_search`."""

import sys

from autodistil_search.cli.main import main

sys.exit(main())
