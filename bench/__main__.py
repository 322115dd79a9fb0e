"""`python -m bench [name …] [--option …]`: run the measurements that are named, or all."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("run", "start", "sync", "tick")


def main() -> int:
    """Run the measurements; return the exit status."""
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    asked = [word for word in sys.argv[1:] if not word.startswith("-")] or list(NAMES)
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        print(f"no measurement {unknown[0]}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in asked:
        import_module(f"bench.{name}").main(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
