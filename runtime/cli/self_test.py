"""``trt-generate --self-test``: does the bundle give on this machine what its checkpoint gave at the build?"""

import argparse
import sys
from pathlib import Path

from runtime.console import json_text
from runtime.errors import RequestError
from runtime.selftest.graphs import raise_for
from runtime.selftest.run import Choices, run_self_test
from runtime.selftest.table import table_text, to_dict


def self_test(args: argparse.Namespace, directory: Path) -> None:
    """Print a table of what was compared, or JSON.

    Raises:
        SelfTestError: something is not as it was at the build; the message names it.
        Ideogram4Error: as for `run_self_test`.
    """
    if args.devices is not None:
        raise RequestError("--devices does not go with --self-test: test one device after the other, with --device")
    choices = Choices(args.backend, args.device, args.memory, args.threads, args.verify)
    outcome = run_self_test(directory, choices)
    if args.json:
        print(json_text(to_dict(outcome), sys.stdout.encoding or "utf-8", 1), flush=True)
    elif not args.quiet:
        if outcome.where:
            print(f"{directory} on {outcome.where}")
        print(table_text(outcome.rows), flush=True)
    raise_for(outcome.rows)
