"""What tasks share: their registry, and one driver each for predict, verify, export, convert, explain and publish."""
