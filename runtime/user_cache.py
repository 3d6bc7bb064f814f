"""Where programs keep files of the user's that can be made again."""

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """The project's directory in the platform's place for such files; it need not exist yet."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ideogram4-trt"
