"""`python -m preparation.face_mesh`; see `cli.py`."""

import sys


def main() -> int:
    """Returns the exit code; 2 also where a package is absent."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        way_out = "run pip install '.[train]' in the project's folder"
        sys.stderr.write(f"python -m preparation.face_mesh: {error.name} is not installed; {way_out}\n")
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
