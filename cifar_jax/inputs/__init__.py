"""What happens to an image before the model sees it. Nothing here knows about files."""
