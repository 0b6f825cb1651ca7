"""Models resident in this process: loaded once, used under a lease, evicted by age."""
