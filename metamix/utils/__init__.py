"""Provide helpers for options, files, messages and figures, and facts about the system."""
