"""What builds have finished: keys, the ledger of an unfinished or finished bundle, and what of it is still sound."""
