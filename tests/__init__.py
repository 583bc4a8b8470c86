"""Tests. A package, so that the benchmarks find the plain formulations in tests/reference."""
