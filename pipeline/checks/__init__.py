"""Is a data set fit to train on."""
