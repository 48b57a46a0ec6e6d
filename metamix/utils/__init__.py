"""Files, messages, figures and facts about the system."""
