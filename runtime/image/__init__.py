"""Pictures: read, fitted, started from, decoded, previewed, written."""
