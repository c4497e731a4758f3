"""How much a vector holds: the AIRI report's tables on decoders trained here."""
