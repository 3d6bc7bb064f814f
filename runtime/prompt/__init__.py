"""From what a user writes to token ids, and the text features that are kept."""
