"""What a run leaves on disk. Nothing here knows about training."""
