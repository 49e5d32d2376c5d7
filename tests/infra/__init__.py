"""Installation, images and deployment files."""
