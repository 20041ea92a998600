"""What launch-glm.py does: names, files, flags, clusters. Standard library only."""
