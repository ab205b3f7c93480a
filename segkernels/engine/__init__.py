"""What the command line runs: doctor, demo, and what they share."""
