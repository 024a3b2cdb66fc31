"""EmonCMS: the backlog of rows, and their delivery."""
