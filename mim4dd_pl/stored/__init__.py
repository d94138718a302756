"""What is kept on disk: expert trajectories and distilled sets."""
