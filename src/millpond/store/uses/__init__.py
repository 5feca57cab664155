"""When what was used last, what is promised and what is pinned; kept out of the index."""
