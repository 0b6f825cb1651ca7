"""The scheduler's side: groups are placed, watched and released."""
