"""Storage formats of data sets, one module each.

Every module has a function that opens a data set and returns its training and test splits. A split is an `ImageSplit`.
"""
