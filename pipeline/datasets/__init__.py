"""What lies on disk: layouts, cases, classes, splits."""
