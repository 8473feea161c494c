"""`python -m taxonomy`."""

from taxonomy.cli import main

if __name__ == "__main__":
    main()
