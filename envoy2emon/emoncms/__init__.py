"""EmonCMS: rows that wait, and their delivery."""
