"""Run folders: what one training leaves behind."""
