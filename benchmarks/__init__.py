"""Speed and quality benchmarks: what is measured, against whom, and the tables made of it."""
