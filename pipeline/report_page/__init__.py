"""One HTML page of runs and scores, complete in itself."""
