"""What follows from the data set as a whole."""
