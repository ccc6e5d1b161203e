"""Where ``vqkit`` and ``python -m vqkit`` begin."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says which packages it needs."""
    # A name that the terminal's encoding lacks shall not end the program.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        from vqkit.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vqkit"):
            raise
        print(f"vqkit: {error.name.partition('.')[0]} is not installed: pip install 'vqkit[train]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # imports take half a second
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
