"""Lets ``python -m notan`` do what ``notan`` does."""

from notan.cli.main import main

if __name__ == "__main__":
    main()
