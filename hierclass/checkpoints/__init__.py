"""Models on disk: saved, loaded, and cut down to one level."""
