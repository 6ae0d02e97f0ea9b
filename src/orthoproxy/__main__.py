"""`python -m orthoproxy`, the same as the command `orthoproxy`."""

from orthoproxy.cli.main import main

raise SystemExit(main())
