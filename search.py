"""`python search.py --objectives acc,flops` is `autodistil-search search --objectives acc,flops`."""

import sys

from autodistil_search.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
