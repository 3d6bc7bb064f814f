"""What the tests of the comparison of bundles with their checkpoint ask for."""

from export.demo_model import DEMO_CHECKPOINT

PROMPTS = ("a red circle on a blue background", "<script>alert(1)</script> & \"quotes\" 'too'")


QUICK = ("--checkpoint", str(DEMO_CHECKPOINT), "--quiet", "--preset", "V4_TURBO_12")


STEPS = 12


def relative(report, bundle, stage):
    return [error.relative for calls in report.entries[bundle].measured.graphs[stage] for error in calls]
