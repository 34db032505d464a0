"""``python -m localv4`` is the command ``localv4``."""

import sys

try:
    from localv4.cli.app import main
except KeyboardInterrupt:  # so early that there is no handler yet
    sys.exit(130)

if __name__ == "__main__":
    main()
