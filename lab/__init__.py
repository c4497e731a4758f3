"""What reproduces the papers and the embedded checkpoint; it uses the package as a user would."""
