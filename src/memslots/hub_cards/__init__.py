"""What a checkpoint is published with: its card, the endpoint's handler, and the push."""
