"""Numbers of the peers, written down for tests that run where the peers are not installed."""
