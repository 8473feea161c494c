"""From logits to an answer: consistent probabilities, thresholds, when to stop, and which images go on."""
