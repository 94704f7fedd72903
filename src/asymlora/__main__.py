"""``python -m asymlora``, and with it ``torchrun -m asymlora``: the command line."""

import sys

from asymlora.cli import main

if __name__ == "__main__":
    sys.exit(main())
