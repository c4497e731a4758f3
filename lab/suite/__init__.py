"""The targets of the embedded checkpoint, on people that it was not trained on."""
