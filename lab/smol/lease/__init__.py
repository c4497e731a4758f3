"""What runs on a GPU that is lent for minutes; README.md above says how."""
