"""From a folder of scans to a trained network and its run folder."""
