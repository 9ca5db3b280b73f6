"""`python -m kit`: the command `kit`, where the folder of scripts is not on the path."""

from __future__ import annotations

import sys

from kit.system.packages import DISTRIBUTION, entry_points


def main() -> None:
    """Run the command."""
    # by its entry point: the library imports nothing of the command line
    own = [one for one in entry_points("console_scripts", "kit") if one.dist and one.dist.name == DISTRIBUTION]
    if not own:
        sys.exit(f"Error: {DISTRIBUTION} is not installed, so there is no command\n  → pip install {DISTRIBUTION}")
    own[0].load()()


if __name__ == "__main__":
    main()
