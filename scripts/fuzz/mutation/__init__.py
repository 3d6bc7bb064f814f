"""Valid inputs to broken ones, each from a random generator alone."""
