"""Find, read, write and check weight files."""
