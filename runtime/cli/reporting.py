"""What ``trt-generate`` says: messages on standard error, and with ``--json`` the settings on standard output.

Nothing here fails for a picture that is there. Standard output that cannot be written is told once, at the end.
"""

import sys
from typing import Any

from tqdm import tqdm

from runtime.cli.batch import Task
from runtime.cli.options import PROGRAM
from runtime.console import describe, discard, json_text, printable
from runtime.generated import Generated


class Report:
    """Tells the user what is done."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        """`as_json`: print settings on standard output."""
        self.quiet, self.as_json = quiet, as_json
        self.problem: OSError | None = None
        """Why standard output could not be written."""

    def say(self, text: str) -> None:
        """A message that is told in any case."""
        tqdm.write(printable(f"{PROGRAM}: {text}"), file=sys.stderr)

    def warn(self, where: str, text: str) -> None:
        """A warning about the line `where` of a prompt file, or about the command line."""
        if not self.quiet:
            self.say(f"warning: {where}: {text}" if where else f"warning: {text}")

    def finished(self, count: int, total: int) -> None:
        """So many jobs were finished before."""
        if count and not self.quiet:
            self.say(f"{count} of {total} are finished already")

    def started(self, text: str) -> None:
        """What runs the pictures."""
        if not self.quiet:
            print(printable(text), file=sys.stderr)

    def made(self, task: Task, made: Generated) -> None:
        """The pictures of a task are in their files."""
        self._task(task, made.used | {"seconds": round(made.seconds, 3)}, "wrote", f" in {made.seconds:.2f} s")

    def planned(self, task: Task) -> None:
        """What a task would do."""
        self._task(task, task.plan.to_dict(), "would write", "")

    def end(self) -> None:
        """Raise OSError when standard output could not be written, but not because its reader had enough."""
        if self.problem is not None and not isinstance(self.problem, BrokenPipeError):
            raise OSError(f"standard output cannot be written ({describe(self.problem)}); all files were written")

    def _task(self, task: Task, used: dict[str, Any], what: str, took: str) -> None:
        files = [str(file) for file in task.job.files]
        if self.as_json:
            line = {"line": task.job.where} if task.job.where else {}
            # One object a line for many, so that a program can read them as they come.
            self._print(line | used | {"files": files}, None if task.job.where else 1)
        if not self.quiet:
            tqdm.write(f"{what} {', '.join(files)}{took}, seed {task.plan.seed}", file=sys.stderr)

    def _print(self, value: dict[str, Any], indent: int | None) -> None:
        if self.problem is not None or sys.stdout is None:
            return
        try:
            print(json_text(value, sys.stdout.encoding or "utf-8", indent), flush=True)
        except OSError as error:
            self.problem = error
            discard(sys.stdout)
