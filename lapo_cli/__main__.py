"""``lapo``, also as ``python -m lapo_cli``."""

import os

from lapo_cli.core.interrupts import exit_at_once


def main() -> None:
    """Entry point of the console script ``lapo``."""
    exit_at_once()  # Before the imports, which take a while; the command itself handles signals in its own way.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or a host without a name gets warnings at every connection
    from lapo_cli.cli.main import app

    try:
        app()
    except SystemExit as end:
        if "RANK" in os.environ:  # Else PyTorch need not be imported to know that this process is the only one.
            from lapo_cli.core.distributed import leave

            leave(end)
        raise


if __name__ == "__main__":
    main()
