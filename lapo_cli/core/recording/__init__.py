"""Recording demonstrations: who acts, and the logs that come of it."""
