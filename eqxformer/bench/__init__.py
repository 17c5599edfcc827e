"""Measuring: candidates side by side in one run, and what this machine could do at most."""
