"""`python -m orthoproxy`, the same as the command `orthoproxy`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C may come before it is imported."""
    try:
        from orthoproxy.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("orthoproxy: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
