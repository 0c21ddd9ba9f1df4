"""Every kernel in plain PyTorch integer arithmetic: the meaning that the other implementations are held to."""
