"""Export and the HTTP server; imports nothing from training."""
