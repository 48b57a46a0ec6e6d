"""Find, read, write and check weights. Nothing here knows a class of models: it compares names, tensors and text."""
