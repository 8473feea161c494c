"""Read pictures and find them on disk."""
