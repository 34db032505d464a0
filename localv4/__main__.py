"""``python -m localv4`` is the command ``localv4``."""

from localv4.cli.app import main

if __name__ == "__main__":
    main()
