"""``lapo``, also as ``python -m lapo_cli``."""

from lapo_cli.core.interrupts import exit_at_once


def main() -> None:
    """Entry point of the console script ``lapo``."""
    exit_at_once()  # Before the imports, which take a while; the command itself handles signals in its own way.
    from lapo_cli.cli.main import app

    app()


if __name__ == "__main__":
    main()
