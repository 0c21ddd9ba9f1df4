"""Understanding attention masks: what a mask's subgraph says of each query and key, read off its structure."""
