"""Where programs keep files of the user's that can be made again."""

import os
import sys
from pathlib import Path


def cache_directory() -> Path | None:
    """The project's directory in the platform's place for such files; it need not exist yet.

    None for a user without a home, such as a number without a name in a container: nothing is kept then.
    """
    variable, usual = ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    if given := os.environ.get(variable):
        return Path(given) / "ideogram4-trt"
    try:
        return Path.home() / usual / "ideogram4-trt"
    except RuntimeError:
        return None
