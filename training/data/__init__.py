"""Labelled images: found, checked, split, ordered and made into batches."""
