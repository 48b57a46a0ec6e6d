"""Open data sets in several storage formats, one module for each format.

Every module except `base` and `tar` has a function that opens a data set and returns its training and test splits. A
split is an `ImageSplit`. The function raises FileNotFoundError if the data set is missing, and ValueError if it cannot
be used. Its argument `test_on` names the split to score; see `choose_test_split`.
"""
