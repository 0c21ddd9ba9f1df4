"""What a backend file and an artifact say, held against what this machine computes."""
