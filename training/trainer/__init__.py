"""The training loop and what it needs: updates, processes, state, the run's folder."""
