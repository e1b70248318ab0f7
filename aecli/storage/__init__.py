"""Atomic writes, locks between processes, and readers that trust no file."""
