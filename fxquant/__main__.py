"""`python -m fxquant` is the command line."""

from fxquant.cli import main

raise SystemExit(main())
