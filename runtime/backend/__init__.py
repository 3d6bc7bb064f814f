"""What runs the graphs of a bundle on this machine, and why."""
