"""What any long work needs: errors, progress, processes."""
