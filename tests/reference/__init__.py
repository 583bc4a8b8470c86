"""The plain formulation of what lapo computes in a cheaper way, and tests that compare the two."""
