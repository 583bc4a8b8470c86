"""Fast against plain, timed side by side in one run: ``python -m tests.benchmarks``. Not collected by pytest."""
