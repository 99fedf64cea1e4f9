"""What ran, on what, with which result."""
