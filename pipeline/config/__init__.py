"""The settings of a training and the files that hold them."""
