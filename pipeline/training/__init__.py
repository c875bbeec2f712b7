"""One training: data module, Lightning module, callbacks, resume, and how it ends."""
