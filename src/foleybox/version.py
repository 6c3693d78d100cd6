"""The version of the package."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"


def commit() -> str:
    """Return the git commit of the source tree, "" outside one (an installed package is in none)."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
