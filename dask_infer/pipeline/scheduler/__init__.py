"""What runs on the scheduler: groups are placed, watched and released."""
