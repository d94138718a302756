"""Training many networks: experts, and the students that evaluate a set."""
