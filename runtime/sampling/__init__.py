"""The arithmetic of a picture: schedule, guidance, noise, rotary positions, Euler steps."""
