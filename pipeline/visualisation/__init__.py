"""Pictures of trainings and segmentations."""
