"""Models on disk: `checkpoint` reads and writes them, `compress` makes smaller ones."""
