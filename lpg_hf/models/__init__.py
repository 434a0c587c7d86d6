"""Models, configurations and image processors; each file imports siblings and third-party packages only."""
