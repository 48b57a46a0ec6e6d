"""Provide what all tasks share: their registry, and the commands that work for models of every task."""
