"""Recording demonstrations: the policies that act, and the replay logs that they give."""
