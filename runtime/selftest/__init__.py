"""A bundle proves itself: what each graph gives on this machine, against what the checkpoint gave at the build."""
