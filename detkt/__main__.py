"""``python -m detkt``: the command ``detkt``, where it was not installed."""

from detkt.cli import main

if __name__ == "__main__":
    main()
