"""Distributed network address translation for Linux."""

__version__ = "0.1.0"
