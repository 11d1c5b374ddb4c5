"""Pictures of any size and depth: read, cut into tiles, restored, compared, written."""
