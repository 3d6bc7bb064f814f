"""The bundle on disk: its manifest and the integrity of its files."""
