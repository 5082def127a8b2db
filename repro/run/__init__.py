"""What a run writes, what identifies it, and how it is read: a folder per run."""
