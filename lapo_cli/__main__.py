"""``python -m lapo_cli``: the same as ``lapo``."""

from lapo_cli.cli.main import main

if __name__ == "__main__":
    main()
