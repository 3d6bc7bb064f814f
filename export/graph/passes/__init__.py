"""Changes of a traced graph, one in each file."""
