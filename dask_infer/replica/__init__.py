"""Models resident in this process: loaded once, used under a lease, let go by age."""
