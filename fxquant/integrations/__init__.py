"""fxquant inside other people's tools."""
