"""Benchmarks of the data plane. Everything is compared with something else measured in the same run."""
