"""A terminal for the standard error of another process, to see what a person sees."""

import fcntl
import os
import pty
import re
import struct
import termios


class Terminal:
    """Twenty-four lines of a hundred columns; give `side` to one process, and read what it writes."""

    def __init__(self) -> None:
        self._controller, self.side = pty.openpty()
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self._shown = b""
        self._ours = True

    def wait_for(self, pattern: str) -> None:
        """Read until a match of `pattern` has been written; fails if the process ends before."""
        while not re.search(pattern.encode(), self._shown):
            assert self._read(), self._shown.decode(errors="replace")

    def rest(self) -> str:
        """All that the process has written, when it has ended."""
        while self._read():
            pass
        os.close(self._controller)
        return self._shown.decode(errors="replace")

    def _read(self) -> bool:
        if self._ours:  # as long as this process has the other side open as well, no end is ever seen
            os.close(self.side)
            self._ours = False
        try:
            piece = os.read(self._controller, 4096)
        except OSError:  # Linux says so when the other side has been closed
            return False
        self._shown += piece
        return bool(piece)
