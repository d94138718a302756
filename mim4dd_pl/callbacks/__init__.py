"""What happens around training; callbacks read and never steer."""
