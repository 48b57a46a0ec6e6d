"""What tasks share: their registry, and one driver each for predict, verify and export."""
