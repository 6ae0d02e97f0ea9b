"""`python -m orthoproxy`, the same as the command `orthoproxy`."""

from orthoproxy.cli import main

raise SystemExit(main())
