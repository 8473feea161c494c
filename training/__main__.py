"""``python -m training`` is ``hierclass-train``."""

from training.cli import main

if __name__ == "__main__":
    main()
