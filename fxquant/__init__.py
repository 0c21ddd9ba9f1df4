"""fxquant: torch.fx graph-rewriting passes that quantize Transformer models and say what they did."""
