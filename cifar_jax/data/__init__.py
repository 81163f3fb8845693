"""Where images come from, and which of them form step n."""
