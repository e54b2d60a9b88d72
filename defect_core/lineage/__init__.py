"""Where things come from: an image's whole ancestry, and what lies between two revisions of a project."""
