"""What the authors published: training records, list files, test volumes and weights."""
